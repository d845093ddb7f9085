#include "model/strict_json.h"

#include <unordered_set>
#include <vector>

#include "runtime/error.h"

namespace hone::model {
namespace {

using nlohmann::json;

// Goes through JSON and looks at nesting and keys only.
class KeyChecker : public nlohmann::json_sax<json> {
 public:
  explicit KeyChecker(const std::string& path) : path_(path) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Enter(); }
  bool key(string_t& name) override {
    Check<CheckpointError>(keys_.back().insert(name).second, "{}: '{}' is there twice", path_,
                           name);
    return true;
  }
  bool end_object() override { return Leave(); }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_array() override { return Leave(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;  // the parser finds it, too
  }

 private:
  static constexpr size_t kDeepest = 4;  // no header goes deeper

  bool Enter() {
    Check<CheckpointError>(keys_.size() < kDeepest, "{}: the header is nested too deeply", path_);
    keys_.emplace_back();
    return true;
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }

  const std::string& path_;
  std::vector<std::unordered_set<std::string>> keys_;
};

}  // namespace

json ParseStrictly(const char* begin, const char* end, const std::string& path) {
  KeyChecker checker(path);
  json::sax_parse(begin, end, &checker);
  return json::parse(begin, end, nullptr, /*allow_exceptions=*/false);
}

}  // namespace hone::model
