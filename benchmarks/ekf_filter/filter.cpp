// robot_localization's Ekf, fed from a file in the order of stamps. See ekf_process_noise.py.
//
// Input: the diagonals of process noise and initial covariance (15 numbers each), then one measurement a line: stamp in
// ns, kind, values. Kind 0, odometry: vx vy vyaw and their variances. 1, IMU: vyaw and its variance. 2, fix: x y yaw,
// covariance (9, by rows), rejection threshold.
// Output, one line a measurement: stamp, kind, x, y, yaw, covariance xx xy yy, variance of yaw, whether it was used.
#include <cstdio>
#include <initializer_list>
#include <iostream>

#include "robot_localization/ekf.hpp"
#include "robot_localization/filter_common.hpp"

using namespace robot_localization;

int main() {
  Ekf filter;
  Eigen::MatrixXd noise = Eigen::MatrixXd::Zero(STATE_SIZE, STATE_SIZE), initial = noise;
  for (int i = 0; i < STATE_SIZE; i++) std::cin >> noise(i, i);
  for (int i = 0; i < STATE_SIZE; i++) std::cin >> initial(i, i);
  filter.setProcessNoiseCovariance(noise);
  filter.setEstimateErrorCovariance(initial);

  int64_t stamp_ns;
  int kind;
  while (std::cin >> stamp_ns >> kind) {
    Measurement m;
    m.time_ = rclcpp::Time(stamp_ns);
    m.measurement_ = Eigen::VectorXd::Zero(STATE_SIZE);
    m.covariance_ = Eigen::MatrixXd::Zero(STATE_SIZE, STATE_SIZE);
    m.update_vector_.assign(STATE_SIZE, false);
    m.mahalanobis_thresh_ = std::numeric_limits<double>::max();
    const auto values = [&](std::initializer_list<int> members) {
      for (int i : members) {
        std::cin >> m.measurement_(i);
        m.update_vector_[i] = true;
      }
    };
    if (kind == 0) {
      values({StateMemberVx, StateMemberVy, StateMemberVyaw});
      for (int i : {StateMemberVx, StateMemberVy, StateMemberVyaw}) std::cin >> m.covariance_(i, i);
    } else if (kind == 1) {
      values({StateMemberVyaw});
      std::cin >> m.covariance_(StateMemberVyaw, StateMemberVyaw);
    } else {
      values({StateMemberX, StateMemberY, StateMemberYaw});
      for (int i : {StateMemberX, StateMemberY, StateMemberYaw})
        for (int j : {StateMemberX, StateMemberY, StateMemberYaw}) std::cin >> m.covariance_(i, j);
      std::cin >> m.mahalanobis_thresh_;
    }
    // two_d_mode
    for (int i : {StateMemberZ, StateMemberRoll, StateMemberPitch, StateMemberVz, StateMemberVroll, StateMemberVpitch,
                  StateMemberAz}) {
      m.measurement_(i) = 0.0;
      m.covariance_(i, i) = 1e-6;
      m.update_vector_[i] = true;
    }
    filter.processMeasurement(m);
    const auto& state = filter.getState();
    const auto& covariance = filter.getEstimateErrorCovariance();
    // A measurement beyond its threshold leaves the prediction as it is.
    const bool used = (state - filter.getPredictedState()).head(2).norm() > 1e-12;
    std::printf("%lld %d %.9g %.9g %.9g %.9g %.9g %.9g %.9g %d\n", static_cast<long long>(stamp_ns), kind,
                state(StateMemberX), state(StateMemberY), state(StateMemberYaw), covariance(0, 0), covariance(0, 1),
                covariance(1, 1), covariance(StateMemberYaw, StateMemberYaw), used ? 1 : 0);
  }
}
