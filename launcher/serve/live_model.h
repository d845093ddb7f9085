// The model of a run that trains: served with its newest published weights, then with those that
// come after them. Reads only; the run does not wait for it.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "launcher/serve/api_server.h"
#include "rl/loaded_model.h"
#include "rl/rollout/weight_follower.h"

namespace hone::launcher {

class LiveModel {
 public:
  struct Options {
    rl::WeightFollower::Options source;
    std::string run;  // its newest checkpoint is served while nothing is published; "" for none
    rl::LoadOptions load;
    int patience_seconds = 60;              // for the first weights
    std::chrono::milliseconds every{1000};  // between looks for newer ones
  };
  // Has weights when it returns. TimeoutError where there were none in time.
  LiveModel(const Options& options, const std::atomic<bool>& stop);
  ~LiveModel() { EndFollowing(); }

  rl::LoadedModel& model() { return model_; }
  // "VERSION-DIGEST" of the weights that the model has; "" those of a checkpoint.
  const std::string& fingerprint() const { return fingerprint_; }
  // From now on gives `server` newer weights as they are published. When the run ends, the last
  // stay; when it is started again, its weights are followed on.
  void Follow(ApiServer& server);
  // Before the server ends; and it ends before this, whose model it serves.
  void EndFollowing();

 private:
  bool FetchFirst();
  void Look(ApiServer& server);
  void Sleep();

  const Options options_;
  const std::atomic<bool>& stop_;
  std::atomic<bool> ending_ = false;
  rl::WeightFollower follower_;
  rl::LoadedModel model_;
  std::string digest_, fingerprint_;
  int64_t version_ = 0;
  std::thread thread_;
};

}  // namespace hone::launcher
