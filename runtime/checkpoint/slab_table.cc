#include "runtime/checkpoint/slab_table.h"

#include <algorithm>
#include <map>

#include "runtime/digest.h"
#include "runtime/error.h"
#include "runtime/json.h"

namespace hone::runtime {

using Json = nlohmann::json;

std::string SlabTable::ToText() const {
  Json shard_rows = Json::array(), slab_rows = Json::array();
  for (const ShardInfo& s : shards) shard_rows.push_back({s.file, s.bytes, s.gap_digest});
  for (const CheckpointSlabInfo& s : slabs) {
    slab_rows.push_back({s.slab.name, DTypeName(s.dtype), s.slab.global_shape, s.slab.offset,
                         s.slab.extent, s.shard, s.dataset, s.position, s.bytes, s.digest});
  }
  return Json{{"version", 1},
              {"shard_columns", {"file", "bytes", "gap_digest"}},
              {"shards", std::move(shard_rows)},
              {"slab_columns",
               {"name", "dtype", "global_shape", "offset", "extent", "shard", "dataset", "position",
                "bytes", "digest"}},
              {"slabs", std::move(slab_rows)}}
      .dump();
}

SlabTable SlabTable::FromText(const std::string& text) {
  SlabTable table;
  try {
    const Json json = ParseJson<Error>(text, "the slab table cannot be read");
    Check(json.at("version") == 1, "version {} of the slab table is not known to this hone",
          json.at("version").dump());
    for (const Json& row : json.at("shards")) {
      table.shards.push_back({row.at(0), row.at(1), row.at(2)});
    }
    for (const Json& row : json.at("slabs")) {
      Slab slab{row.at(0), row.at(2), row.at(3), row.at(4)};
      table.slabs.push_back({std::move(slab), DTypeFromName(row.at(1).get<std::string>()),
                             row.at(5), row.at(6), row.at(9), row.at(8), row.at(7)});
    }
  } catch (const Json::exception& e) {
    throw Error(fmt::format("the slab table cannot be read: {}", e.what()));
  }
  return table;
}

void SlabTable::Append(SlabTable other) {
  std::move(other.shards.begin(), other.shards.end(), std::back_inserter(shards));
  std::move(other.slabs.begin(), other.slabs.end(), std::back_inserter(slabs));
}

namespace {

void CheckInside(const Slab& slab) {
  bool ok = slab.offset.size() == slab.global_shape.size() &&
            slab.extent.size() == slab.global_shape.size();
  for (size_t d = 0; ok && d < slab.extent.size(); ++d) {
    ok = slab.offset[d] >= 0 && slab.extent[d] >= 0 &&
         slab.offset[d] + slab.extent[d] <= slab.global_shape[d];
  }
  Check<CheckpointError>(ok, "[checkpoint] {} reaches outside its tensor", slab.ToString());
}

}  // namespace

void SlabTable::CheckCoverage() const {
  struct Tensor {
    const CheckpointSlabInfo* first;
    std::vector<Slab> missing;
  };
  std::map<std::string, Tensor> tensors;
  for (const CheckpointSlabInfo& info : slabs) {
    CheckInside(info.slab);
    auto [it, fresh] = tensors.try_emplace(info.slab.name, Tensor{&info, {}});
    Tensor& tensor = it->second;
    if (fresh) {
      Slab whole = Slab::Whole(info.slab.name, info.slab.global_shape);
      if (whole.size() > 0) tensor.missing.push_back(whole);
    }
    const CheckpointSlabInfo& first = *tensor.first;
    Check<CheckpointError>(
        first.slab.global_shape == info.slab.global_shape && first.dtype == info.dtype,
        "[checkpoint] {} is {} {} in one place and {} {} in another", info.slab.name,
        DTypeName(first.dtype), ShapeToString(first.slab.global_shape), DTypeName(info.dtype),
        ShapeToString(info.slab.global_shape));
    std::vector<Slab> rest;
    for (const Slab& part : tensor.missing) {
      for (Slab& left : Subtract(part, info.slab)) rest.push_back(std::move(left));
    }
    tensor.missing = std::move(rest);
  }
  for (const auto& [name, tensor] : tensors) {
    Check<CheckpointError>(tensor.missing.empty(), "[checkpoint] no rank holds {}",
                           tensor.missing.empty() ? "" : tensor.missing[0].ToString());
  }
}

std::string SlabTable::WhatIsIn(const std::string& shard) const {
  std::string first;
  int more = -1;
  for (const CheckpointSlabInfo& info : slabs) {
    if (info.shard != shard) continue;
    if (first.empty()) first = info.slab.ToString();
    ++more;
  }
  return more > 0 ? fmt::format("{}, and {} more", first, more) : first;
}

std::string ViewName(const std::string& tensor) {
  return tensor.find('/') == std::string::npos ? "/model/" + tensor : "/" + tensor;
}

std::string ShardName(int rank) { return fmt::format("shard-{:05}.h5", rank); }

std::string GapDigest(FileSystem& fs, const std::string& path,
                      const std::vector<CheckpointSlabInfo>& slabs) {
  std::vector<std::pair<int64_t, int64_t>> datasets;  // begin, end
  for (const CheckpointSlabInfo& info : slabs) {
    if (info.position >= 0 && info.bytes > 0) {
      datasets.emplace_back(info.position, info.position + info.bytes);
    }
  }
  std::sort(datasets.begin(), datasets.end());
  auto file = fs.Open(path, OpenMode::kRead);
  int64_t size = file->Size();
  datasets.emplace_back(size, size);

  constexpr int64_t kChunk = 1 << 20;
  DigestStream digest;
  std::string buffer;
  int64_t at = 0;
  for (const auto& [begin, end] : datasets) {
    while (at < begin) {
      int64_t n = std::min(kChunk, begin - at);
      buffer.resize(n);
      file->Read(at, buffer.data(), n);
      digest.Add(buffer.data(), n);
      at += n;
    }
    at = std::max(at, end);
  }
  return digest.Finish();
}

}  // namespace hone::runtime
