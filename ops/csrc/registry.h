// Objects that Python holds as numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace lattica {

template <typename T>
class Registry {
 public:
  // Never destroyed: what is still held when the process ends may need libraries that are gone by then.
  static Registry& global() {
    static Registry& registry = *new Registry;
    return registry;
  }
  int64_t add(std::shared_ptr<T> object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < objects_.size(); ++i)
      if (objects_[i] == nullptr) return objects_[i] = std::move(object), static_cast<int64_t>(i);
    objects_.push_back(std::move(object));
    return static_cast<int64_t>(objects_.size()) - 1;
  }
  // Null if there is no such object.
  std::shared_ptr<T> find(int64_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return handle >= 0 && handle < static_cast<int64_t>(objects_.size()) ? objects_[handle] : nullptr;
  }
  void remove(int64_t handle) {
    std::shared_ptr<T> last;  // destroyed outside the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    if (handle >= 0 && handle < static_cast<int64_t>(objects_.size())) last.swap(objects_[handle]);
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<T>> objects_;
};

}  // namespace lattica
