#include "launcher/serve/live_model.h"

#include <iostream>

#include "rl/rollout/worker_config.h"

namespace hone::launcher {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kNap = std::chrono::milliseconds(50);

std::string Fingerprint(const rl::WeightVersion& version) {
  return fmt::format("{}-{}", version.version, version.digest.substr(0, 12));
}

// The run's model as its coordinator describes it to workers.
rl::LoadedModel Describe(const rl::WeightFollower::News& news, const rl::LoadOptions& options) {
  const rl::WorkerConfig config = rl::ReadWorkerConfig(news.worker_config);
  rl::ModelFiles files;
  files.weights = "the run that is followed";
  files.config = config.model;
  files.dtype = config.dtype;
  files.tokenizer = config.tokenizer;
  files.special_tokens = config.special_tokens;
  rl::LoadedModel model = rl::MakeModel(files, options);
  if (options.tokenizer.empty()) {
    const std::string mine = rl::ModelDigest(config.model, model.tokenizer->Digest());
    Check<ConfigError>(mine == news.model_digest,
                       "[serve] the run trains model {} and this is {}: its tokenizer is another "
                       "one here",
                       news.model_digest, mine);
  }
  return model;
}

}  // namespace

LiveModel::LiveModel(const Options& options, const std::atomic<bool>& stop)
    : options_(options), stop_(stop), follower_(options.source) {
  const auto deadline = Clock::now() + std::chrono::seconds(options.patience_seconds);
  while (!FetchFirst()) {
    Check<StoppedEarly>(!stop_, "[serve] stopped while waiting for weights");
    Check<TimeoutError>(
        Clock::now() < deadline,
        "[serve] nobody published weights for {} s: a run publishes them when it begins to sample",
        options.patience_seconds);
    Sleep();
  }
}

void LiveModel::EndFollowing() {
  ending_ = true;
  if (thread_.joinable()) thread_.join();
}

bool LiveModel::FetchFirst() {
  const auto news = follower_.Ask();
  if (news && news->newest.version > 0) {
    model_ = Describe(*news, options_.load);
    try {
      follower_.Fetch(news->newest, model_.stage->State());
    } catch (const CommError& e) {
      std::cerr << "hone serve: " << e.what() << "; trying again\n";
      return false;
    }
    version_ = news->newest.version;
    digest_ = news->newest.digest;
    fingerprint_ = Fingerprint(news->newest);
    return true;
  }
  if (options_.run.empty()) return false;
  try {
    model_ = rl::LoadModelForInference(options_.run, options_.load);
  } catch (const ConfigError&) {
    return false;  // no checkpoint yet
  } catch (const CheckpointError&) {
    return false;  // a newer one took its place while it was read
  }
  return true;
}

void LiveModel::Follow(ApiServer& server) {
  thread_ = std::thread([this, &server] {
    while (!stop_ && !ending_) {
      try {
        Look(server);
      } catch (const std::exception& e) {
        std::cerr << "hone serve: " << e.what() << "; the weights stay as they are\n";
      }
      Sleep();
    }
  });
}

void LiveModel::Look(ApiServer& server) {
  const auto news = follower_.Ask();
  if (!news || news->newest.version == 0 || news->newest.version == version_) return;
  const rl::WeightVersion& newest = news->newest;
  const SlabIndex state = model_.stage->State();
  if (newest.digest != digest_) {
    // Fetched beside the weights in use, and checked, before these are touched.
    Context host;
    SlabIndex fetched;
    for (const SlabTensor& s : state) {
      fetched.push_back({s.slab, host.Empty(s.tensor.shape(), s.tensor.dtype())});
    }
    follower_.Fetch(newest, fetched);
    auto replace = [&] {
      for (size_t i = 0; i < state.size(); ++i) CopyTo(fetched[i].tensor, state[i].tensor);
    };
    if (!server.Replace(replace, Fingerprint(newest))) return;
  }
  version_ = newest.version;
  digest_ = newest.digest;
}

void LiveModel::Sleep() {
  const auto until = Clock::now() + options_.every;
  while (!stop_ && !ending_ && Clock::now() < until) std::this_thread::sleep_for(kNap);
}

}  // namespace hone::launcher
