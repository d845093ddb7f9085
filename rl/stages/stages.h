// The stages of a run, each a function that begins or resumes one and returns when it is done.
#pragma once

#include "rl/stages/environment.h"

namespace hone::rl {

// pretrain, sft, distill: cross-entropy on examples.
void RunSupervised(Environment& env, const StageConfig& stage);
// A policy's weights with a value head, trained to score completions.
void RunRewardModel(Environment& env, const StageConfig& stage);
// Reinforcement learning with group-relative advantages.
void RunGrpo(Environment& env, const StageConfig& stage);
// Samples from a policy, keeps what is right and readable, writes JSONL.
void RunRejectionSampling(Environment& env, const StageConfig& stage);
// The weights of an earlier stage as a Hugging Face folder, RUN/export/NAME.
void RunExport(Environment& env, const StageConfig& stage);
// Scores of every suite for the weights that the learner holds. Collective; the same on every rank.
EvaluationScores RunSuite(Environment& env, const EvaluationSuite& suite, const std::string& label);

// All stages in order, from where the run directory stands. `until`: the last stage to run, "" for
// all.
void RunStages(Environment& env, const std::string& until);

}  // namespace hone::rl
