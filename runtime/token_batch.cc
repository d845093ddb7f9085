#include "runtime/token_batch.h"

namespace hone::runtime {
namespace {

// Names the field at fault in every message.
class BatchCheck {
 public:
  BatchCheck(const TokenBatch& batch, const std::string& where) : batch_(batch), where_(where) {}

  template <class T>
  void Length(const char* field, const std::vector<T>& values) const {
    CheckShape(static_cast<int64_t>(values.size()) == batch_.tokens(),
               "[{}] {} has {} entries for {} tokens", where_, field, values.size(),
               batch_.tokens());
  }
  template <class T>
  void OptionalLength(const char* field, const std::vector<T>& values) const {
    if (!values.empty()) Length(field, values);
  }
  void Range(const char* field, const std::vector<int32_t>& values, int64_t end,
             bool may_miss) const {
    for (size_t t = 0; t < values.size(); ++t) {
      bool ok =
          (values[t] >= 0 && values[t] < end) || (may_miss && values[t] == TokenBatch::kNoTarget);
      CheckShape(ok, "[{}] {}[{}] = {} is outside [0, {})", where_, field, t, values[t], end);
    }
  }
  void Offsets() const {
    const auto& offsets = batch_.cu_seqlens;
    CheckShape(!offsets.empty() && offsets.front() == 0 && offsets.back() == batch_.tokens(),
               "[{}] cu_seqlens must run from 0 to the {} tokens; it runs from {} to {}", where_,
               batch_.tokens(), offsets.empty() ? -1 : offsets.front(),
               offsets.empty() ? -1 : offsets.back());
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      CheckShape(offsets[s] < offsets[s + 1], "[{}] cu_seqlens[{}] = {} is not below the next, {}",
                 where_, s, offsets[s], offsets[s + 1]);
    }
  }
  void Embeddings() const {
    const Tensor& rows = batch_.embedding_VD;
    const auto& slots = batch_.embedding_slot_V;
    int64_t given = rows.defined() ? rows.dim(0) : 0;
    CheckShape(given == static_cast<int64_t>(slots.size()),
               "[{}] embedding_VD has {} rows for {} entries of embedding_slot_V", where_, given,
               slots.size());
    Range("embedding_slot_V", slots, batch_.tokens(), false);
  }
  void Routing() const {
    const auto& routing = batch_.routing_TLK;
    if (routing.empty()) return;
    bool ok = batch_.tokens() > 0 && routing.size() % batch_.token_T.size() == 0;
    CheckShape(ok, "[{}] routing_TLK has {} entries, no multiple of {} tokens", where_,
               routing.size(), batch_.tokens());
  }
  void Samples() const {
    CheckShape(batch_.sample_S.empty() ||
                   static_cast<int64_t>(batch_.sample_S.size()) == batch_.sequences(),
               "[{}] sample_S has {} entries for {} sequences", where_, batch_.sample_S.size(),
               batch_.sequences());
  }

 private:
  const TokenBatch& batch_;
  const std::string& where_;
};

}  // namespace

void TokenBatch::Validate(int64_t vocab_size, int64_t max_position,
                          const std::string& where) const {
  BatchCheck check(*this, where);
  check.Length("target_T", target_T);
  check.Length("position_T", position_T);
  check.Length("loss_weight_T", loss_weight_T);
  check.Offsets();
  check.Range("token_T", token_T, vocab_size, false);
  check.Range("target_T", target_T, vocab_size, true);
  check.Range("position_T", position_T, max_position, false);
  for (int64_t t = 0; t < tokens(); ++t) {
    CheckShape(target_T[t] != kNoTarget || loss_weight_T[t] == 0.0f,
               "[{}] loss_weight_T[{}] = {} where target_T has none", where, t, loss_weight_T[t]);
  }
  check.Embeddings();
  check.Routing();
  check.OptionalLength("sampled_logp_T", sampled_logp_T);
  check.OptionalLength("old_logp_T", old_logp_T);
  check.OptionalLength("reference_logp_T", reference_logp_T);
  check.OptionalLength("advantage_T", advantage_T);
  check.Samples();
}

}  // namespace hone::runtime
