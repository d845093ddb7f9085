// Finding a model's chat template among its files.
#include <filesystem>

#include "data/bpe/json_access.h"
#include "data/chat_template.h"

namespace hone::data {
namespace {

using nlohmann::json;

std::string TokenText(const json& config, const char* key, const std::string& where) {
  if (!config.contains(key) || config[key].is_null()) return "";
  if (config[key].is_object()) return Get<std::string>(config[key], "content", "", where);
  return Get<std::string>(config, key, "", where);
}

// A string, or a list of {name, template} of which "default" is meant.
std::string TemplateText(const json& config, const std::string& where) {
  if (!config.contains("chat_template")) return "";
  const json& node = config["chat_template"];
  if (!node.is_array()) return Get<std::string>(config, "chat_template", "", where);
  for (const json& entry : node) {
    if (Get<std::string>(entry, "name", "", where) == "default") {
      return Get<std::string>(entry, "template", "", where);
    }
  }
  return "";
}

}  // namespace

ChatTemplate ChatTemplate::FromFolder(const std::string& folder) {
  namespace fs = std::filesystem;
  fs::path config_path = fs::path(folder) / "tokenizer_config.json";
  fs::path jinja_path = fs::path(folder) / "chat_template.jinja";
  std::string jinja, bos, where = folder;
  if (fs::exists(config_path)) {
    where = config_path.string();
    json config = ParseJson(runtime::LocalFileSystem().ReadAll(where), where);
    Check<DataError>(config.is_object(), "{}: no JSON object", where);
    bos = TokenText(config, "bos_token", where);
    jinja = TemplateText(config, where);
  }
  if (fs::exists(jinja_path)) {
    where = jinja_path.string();
    jinja = runtime::LocalFileSystem().ReadAll(where);
  }
  Check<ConfigError>(!jinja.empty(), "[chat_template] {} has no chat template", folder);
  return Recognise(jinja, bos, where);
}

ChatTemplate ChatTemplate::Load(const std::string& name_or_folder) {
  if (std::filesystem::is_directory(name_or_folder)) return FromFolder(name_or_folder);
  return Named(name_or_folder);
}

}  // namespace hone::data
