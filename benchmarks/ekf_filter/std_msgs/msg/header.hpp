#pragma once
#include <cstdint>

namespace std_msgs::msg {

struct Header {
  struct _stamp_type {
    int32_t sec;
    uint32_t nanosec;
  };
};

}  // namespace std_msgs::msg
