// A small model with random weights over bytes, as `hone serve` holds one.
#pragma once

#include "rl/loaded_model.h"

namespace hone::launcher {

inline rl::LoadedModel TinyModel(int64_t context, const std::string& chat_template) {
  rl::LoadedModel m;
  model::ModelConfig& c = m.files.config;
  c.hidden_size = 16;
  c.intermediate_size = 24;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 2;
  c.num_key_value_heads = 1;
  c.vocab_size = 263;
  c.max_position_embeddings = context;
  c.FillDerived();
  c.Validate("tiny");
  m.ctx = std::make_unique<Context>();
  m.tokenizer = data::MakeByteTokenizer();
  m.chat_template = data::ChatTemplate::Named(chat_template);
  m.stop_ids = {m.tokenizer->eos_id()};
  model::StageOptions stage;
  stage.end_layer = c.num_hidden_layers;
  stage.with_gradients = false;
  m.stage = std::make_unique<model::TransformerStage>(*m.ctx, c, stage);
  m.stage->Initialize(7);
  return m;
}

}  // namespace hone::launcher
