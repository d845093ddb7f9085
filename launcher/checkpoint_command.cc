// `hone checkpoint`: what checkpoints there are, what is in one, and whether every byte is as
// saved.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <map>
#include <set>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/error.h"
#include "runtime/json.h"

namespace hone::launcher {
namespace {

using Json = nlohmann::ordered_json;
using runtime::CheckpointReader;
using runtime::CheckpointSlabInfo;

// Every checkpoint at or below `path`, in order of name: folders with an index, and folders that
// are named as a finished one though their index is gone.
void FindCheckpoints(const std::filesystem::path& path, std::vector<std::string>* found) {
  std::string name = path.filename().string();
  bool named = name.starts_with("step-") && !name.ends_with(".tmp");
  if (named || std::filesystem::exists(path / "index.h5")) {
    found->push_back(path.string());
    return;
  }
  std::set<std::filesystem::path> below;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    bool enter = entry.is_directory() && !entry.is_symlink() &&
                 !entry.path().filename().string().ends_with(".tmp");
    if (enter) below.insert(entry.path());
  }
  for (const auto& folder : below) FindCheckpoints(folder, found);
}

std::vector<std::string> CheckpointsAt(const std::string& path) {
  Check<CheckpointError>(std::filesystem::is_directory(path), "[checkpoint] {} is not a folder",
                         path);
  std::vector<std::string> found;
  FindCheckpoints(std::filesystem::path(path + "/").parent_path(), &found);
  Check<CheckpointError>(!found.empty(), "[checkpoint] there is no checkpoint in {}", path);
  return found;
}

std::string ReadableBytes(int64_t bytes) {
  if (bytes < 1000) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  for (const char* unit : {"kB", "MB", "GB"}) {
    value /= 1000;
    if (value < 1000) return fmt::format("{:.1f} {}", value, unit);
  }
  return fmt::format("{:.1f} TB", value / 1000);
}

// The metadata as JSON; as text when it is none.
Json MetadataOf(const CheckpointReader& reader) {
  Json metadata = runtime::TryParseJson<Json>(reader.metadata());
  return metadata.is_discarded() ? Json(reader.metadata()) : metadata;
}

// path, tensors, parameters (elements under model/), shards, bytes, metadata; or path and error.
Json Summary(const std::string& path) {
  try {
    CheckpointReader reader(runtime::LocalFileSystem(), path);
    int64_t bytes = 0, parameters = 0, tensors = 0;
    std::set<std::string> shards;
    for (const CheckpointSlabInfo& info : reader.slabs()) {
      bytes += info.bytes;
      if (!info.shard.empty()) shards.insert(info.shard);
    }
    for (const Slab& tensor : reader.Tensors()) {
      ++tensors;
      if (tensor.name.starts_with("model/")) parameters += tensor.size();
    }
    return {{"path", path},
            {"tensors", tensors},
            {"parameters", parameters},
            {"shards", shards.size()},
            {"bytes", bytes},
            {"metadata", MetadataOf(reader)}};
  } catch (const Error& e) {
    return {{"path", path}, {"error", e.what()}};
  }
}

int List(const std::string& path, bool json) {
  Json all = Json::array();
  for (const std::string& checkpoint : CheckpointsAt(path)) all.push_back(Summary(checkpoint));
  if (json) {
    std::cout << all.dump(1) << "\n";
    return 0;
  }
  for (const Json& one : all) {
    std::string name = one["path"];
    if (one.contains("error")) {
      std::cout << name << "  damaged: " << one["error"].get<std::string>() << "\n";
      continue;
    }
    std::cout << fmt::format("{}  {} tensors, {} model parameters, {} in {} shard{}\n", name,
                             one["tensors"].get<int64_t>(), one["parameters"].get<int64_t>(),
                             ReadableBytes(one["bytes"]), one["shards"].get<int64_t>(),
                             one["shards"] == 1 ? "" : "s");
  }
  return 0;
}

Json TensorRows(const CheckpointReader& reader) {
  struct Row {
    DType dtype;
    Shape shape;
    int64_t pieces = 0, bytes = 0;
  };
  std::map<std::string, Row> rows;
  for (const CheckpointSlabInfo& info : reader.slabs()) {
    Row& row =
        rows.try_emplace(info.slab.name, Row{info.dtype, info.slab.global_shape}).first->second;
    ++row.pieces;
    row.bytes += info.bytes;
  }
  Json tensors = Json::array();
  for (const auto& [name, row] : rows) {
    tensors.push_back({{"name", name},
                       {"dtype", std::string(DTypeName(row.dtype))},
                       {"shape", row.shape},
                       {"pieces", row.pieces},
                       {"bytes", row.bytes}});
  }
  return tensors;
}

int Show(const std::string& path, bool json) {
  std::vector<std::string> found = CheckpointsAt(path);
  Check<CheckpointError>(found.size() == 1, "[checkpoint] {} holds {} checkpoints; name one, as {}",
                         path, found.size(), found.back());
  CheckpointReader reader(runtime::LocalFileSystem(), found[0]);
  Json shown = {
      {"path", found[0]}, {"metadata", MetadataOf(reader)}, {"tensors", TensorRows(reader)}};
  if (json) {
    std::cout << shown.dump(1) << "\n";
    return 0;
  }
  std::cout << found[0] << "\n" << shown["metadata"].dump(1) << "\n";
  size_t width = 0;
  for (const Json& t : shown["tensors"]) {
    width = std::max(width, t["name"].get_ref<const std::string&>().size());
  }
  for (const Json& t : shown["tensors"]) {
    std::cout << fmt::format(
        "{:{}}  {:6} {:20} {} piece{}, {}\n", t["name"].get<std::string>(), width,
        t["dtype"].get<std::string>(), runtime::ShapeToString(t["shape"].get<Shape>()),
        t["pieces"].get<int64_t>(), t["pieces"] == 1 ? "" : "s", ReadableBytes(t["bytes"]));
  }
  return 0;
}

// 1 when any is damaged: all are read nevertheless.
int Verify(const std::string& path, bool json) {
  Json all = Json::array();
  int code = 0;
  for (const std::string& checkpoint : CheckpointsAt(path)) {
    std::string error;
    try {
      CheckpointReader(runtime::LocalFileSystem(), checkpoint).Verify();
    } catch (const Error& e) {
      error = e.what();
      code = 1;
    }
    all.push_back({{"path", checkpoint}, {"sound", error.empty()}, {"error", error}});
    if (!json)
      std::cout << checkpoint << "  " << (error.empty() ? "sound" : "damaged\n" + error) << "\n";
  }
  if (json) std::cout << all.dump(1) << "\n";
  return code;
}

}  // namespace

int CheckpointCommand(const Arguments& args) {
  CLI::App app("List, show or verify checkpoints", "hone checkpoint");
  app.require_subcommand(1);
  std::string path;
  bool json = false;
  auto add = [&](const char* name, const char* what) {
    CLI::App* command = app.add_subcommand(name, what);
    command->add_option("path", path, "a checkpoint, or a folder with some below it")->required();
    command->add_flag("--json", json, "for machines");
    return command;
  };
  CLI::App* ls = add("ls", "every checkpoint below PATH");
  CLI::App* show = add("show", "the metadata and tensors of one");
  add("verify", "read every byte and compare it with its digest");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  if (ls->parsed()) return List(path, json);
  return show->parsed() ? Show(path, json) : Verify(path, json);
}

}  // namespace hone::launcher
