#pragma once
#include "rclcpp/time.hpp"
