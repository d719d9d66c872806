// Times and durations in nanoseconds: as much of rclcpp as robot_localization's filter needs, so that it builds without ROS.
#pragma once
#include <cstdint>
#include <iomanip>
#include <limits>
#include <memory>
#include <string>

using rcl_time_point_value_t = int64_t;
enum rcl_clock_type_t { RCL_ROS_TIME };

namespace rclcpp {

class Duration {
 public:
  Duration(int32_t seconds, uint32_t nanoseconds) : ns_(int64_t{seconds} * 1000000000 + nanoseconds) {}
  static Duration from_nanoseconds(int64_t ns) {
    Duration made(0, 0u);
    made.ns_ = ns;
    return made;
  }
  static Duration from_seconds(double seconds) { return from_nanoseconds(static_cast<int64_t>(seconds * 1e9)); }
  int64_t nanoseconds() const { return ns_; }
  bool operator>(const Duration& other) const { return ns_ > other.ns_; }
  bool operator>=(const Duration& other) const { return ns_ >= other.ns_; }

 private:
  int64_t ns_;
};

class Time {
 public:
  explicit Time(int64_t ns = 0) : ns_(ns) {}
  Time(int32_t seconds, uint32_t nanoseconds, rcl_clock_type_t)
      : ns_(int64_t{seconds} * 1000000000 + nanoseconds) {}
  int64_t nanoseconds() const { return ns_; }
  Duration operator-(const Time& other) const { return Duration::from_nanoseconds(ns_ - other.ns_); }
  bool operator>(const Time& other) const { return ns_ > other.ns_; }

 private:
  int64_t ns_;
};

}  // namespace rclcpp
