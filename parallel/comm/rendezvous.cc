#include <utility>

#include "parallel/comm/process_group.h"

namespace hone::parallel {
namespace {

// Over a group of its own: a checkpoint is agreed on in the background, while the training thread
// goes on with collectives of the group it came from.
class GroupRendezvous : public runtime::Rendezvous {
 public:
  explicit GroupRendezvous(const GroupPtr& group)
      : group_(group->Split(0, group->rank(), group->name() + ".rendezvous")) {}

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  std::vector<std::string> AllGather(const std::string& bytes) override {
    return group_->AllGatherBytes(bytes);
  }

 private:
  GroupPtr group_;
};

}  // namespace

std::shared_ptr<runtime::Rendezvous> MakeRendezvous(GroupPtr group) {
  return std::make_shared<GroupRendezvous>(group);
}

}  // namespace hone::parallel
