"""The lifecycle node: parameters to settings, messages to records, records to messages.

Threads
-------
The executor (one thread) answers services, takes messages and never waits for an image. The worker (one thread while
active) localizes. Loading runs in a thread of its own while the configure transition waits for it, because a compiler
of engines may take minutes and a signal must end the process meanwhile.

rclpy's MultiThreadedExecutor is not used: with 30 images and 150 IMU samples a second it took 80% of a core, the
single-threaded one 7%.
"""

from __future__ import annotations

import functools
import threading
import time
import traceback
from typing import Any, Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from nav_msgs.msg import OccupancyGrid, Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpHandle, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, Imu, NavSatFix
from std_srvs.srv import SetBool, Trigger

from unifygeo_ros.conversions.from_messages import imu_sample, initial_pose, odometry_sample, stamp_ns
from unifygeo_ros.core.errors import ConfigurationError, UnifyGeoError
from unifygeo_ros.core.records import CameraImage, Fix, Observation, Rejection
from unifygeo_ros.ros.camera_mount import mount_from_tf
from unifygeo_ros.ros.debug_image import draw_debug_image
from unifygeo_ros.ros.health import Health
from unifygeo_ros.ros.inbox import Frame
from unifygeo_ros.ros.loading import Loaded, load
from unifygeo_ros.ros.parameters import changed_settings, declare_parameters, read_settings, refused
from unifygeo_ros.ros.to_messages import (
    heatmap_message,
    hypotheses_message,
    jpeg_message,
    navsat_message,
    pose_message,
)
from unifygeo_ros.ros.worker import Worker

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

NODE_NAME = "unifygeo_localizer"
IMAGE_QUEUE = 5  # the inbox keeps one; the rest is for the executor to take and count
MOTION_QUEUE = 200  # a second of a fast IMU, should the executor be late
STOP_TIMEOUT_S = 5.0
"""How long the end of an image, or of a step of loading, is waited for when the process is told to stop."""


class _Stopped(Exception):
    """The process was told to stop while a model was loading."""


Transition = Callable[["LocalizerNode", LifecycleState], TransitionCallbackReturn]


def _reported(result: TransitionCallbackReturn) -> Callable[[Transition], Transition]:
    """Decorate a transition callback: an exception is logged, shown in the diagnostics, and ends it with `result`.

    rclpy catches what a callback raises without a word in the log.
    """

    def decorate(callback: Transition) -> Transition:
        @functools.wraps(callback)
        def guarded(node: LocalizerNode, state: LifecycleState) -> TransitionCallbackReturn:
            try:
                return callback(node, state)
            except Exception as error:
                node.transition_failed(callback.__name__.removeprefix("on_"), error)
                return result

        return guarded

    return decorate


class LocalizerNode(LifecycleNode):  # type: ignore[misc]  # rclpy brings no types
    """See docs/reference/node.md for topics, services and parameters."""

    def __init__(self, **options: Any) -> None:
        """options: of rclpy's LifecycleNode. Raises ConfigurationError for a parameter override that cannot be used."""
        super().__init__(NODE_NAME, **options)
        declare_parameters(self)
        self._settings = read_settings(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._health = Health()
        self._loaded: Loaded | None = None
        self._worker: Worker | None = None
        self._jump_handle: JumpHandle | None = None
        self._inputs: list[Subscription] = []
        self._enabled = False
        self._triggered = False
        self._next_heatmap_s = self._next_debug_image_s = 0.0
        self._failure: str | None = None  # why the last transition failed, for on_error
        self.stuck = False  # whether a thread of this node's was given up while a library call held it

        self._fix_publisher = self.create_lifecycle_publisher(PoseWithCovarianceStamped, "~/fix", 10)
        self._navsat_publisher = self.create_lifecycle_publisher(NavSatFix, "~/navsat", 10)
        self._hypotheses_publisher = self.create_lifecycle_publisher(PoseArray, "~/hypotheses", 10)
        self._heatmap_publisher = self.create_lifecycle_publisher(OccupancyGrid, "~/heatmap", 1)
        self._debug_publisher = self.create_lifecycle_publisher(CompressedImage, "~/debug_image/compressed", 1)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/trigger", self._on_trigger)
        self.create_service(Trigger, "~/reset", self._on_reset)
        # On a steady clock: diagnostics go on while a simulated clock stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        period_s = self._settings.node.diagnostics_period_s
        self.create_timer(period_s, self._publish_diagnostics, clock=steady)
        self._guard_transitions()

    # -- lifecycle --------------------------------------------------------------------------------------------------

    @_reported(TransitionCallbackReturn.FAILURE)
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and check everything; on FAILURE the reason is in the log and the diagnostics."""
        try:
            self._settings = read_settings(self)
            self._loaded = self._load_in_thread()
        except UnifyGeoError as error:
            self.get_logger().error(f"Configuration failed: {error}")
            self._health.state("unconfigured", f"configuration failed: {error}", model={})
            self._publish_diagnostics()
            return TransitionCallbackReturn.FAILURE
        except _Stopped:
            return TransitionCallbackReturn.FAILURE
        for key, value in self._loaded.identity.items():
            self.get_logger().info(f"{key}: {value}")
        self._health.state("inactive", model=self._loaded.identity)
        jump_ns = round(self._settings.session.time_jump_s * 1e9)
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-jump_ns), on_clock_change=True)
        # The session forgets the drive by itself when images jump back; the clock may say so before any image does.
        self._jump_handle = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)
        return TransitionCallbackReturn.SUCCESS

    @_reported(TransitionCallbackReturn.FAILURE)
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen and localize."""
        assert self._loaded is not None
        result = super().on_activate(state)
        self._enabled, self._triggered = self._settings.node.enabled, False
        self._worker = Worker(self._loaded, self, self._health, self.get_logger(), self._shutting_down)
        self._subscribe()
        self._health.state("active")
        return result

    @_reported(TransitionCallbackReturn.ERROR)
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening; what is loaded stays loaded, and the drive is forgotten."""
        if not self._stop():
            self._failure = f"the image in work did not end within {STOP_TIMEOUT_S:g} s; its engines were given up"
            self.get_logger().error(f"Deactivation failed: {self._failure}")
            return TransitionCallbackReturn.ERROR
        assert self._loaded is not None
        self._loaded.session.reset()
        self._health.state("inactive")
        return super().on_deactivate(state)

    @_reported(TransitionCallbackReturn.ERROR)
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        self._unload()
        self._health.state("unconfigured", model={})
        return TransitionCallbackReturn.SUCCESS

    @_reported(TransitionCallbackReturn.ERROR)
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._unload()
        self._health.state("finalized", model={})
        return TransitionCallbackReturn.SUCCESS

    @_reported(TransitionCallbackReturn.FAILURE)
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition raised an error: back to unconfigured, with nothing loaded."""
        self._unload()
        self._health.state("unconfigured", self._failure, model={})
        self._publish_diagnostics()
        return TransitionCallbackReturn.SUCCESS

    def transition_failed(self, transition: str, error: Exception) -> None:
        """Log what a transition callback raised and take back what it had begun."""
        self.get_logger().error(f"{transition} failed: {''.join(traceback.format_exception(error))}")
        problem = self._failure = f"{transition} failed with {type(error).__name__}: {error}"
        if transition == "configure":
            self._unload()
            self._health.state("unconfigured", problem, model={})
        elif transition == "activate":
            self._stop()
            super().on_deactivate(None)  # silences the publishers
            self._health.state("inactive", problem)
        else:
            self._health.state("unconfigured" if transition != "error" else "finalized", problem, model={})
        self._publish_diagnostics()

    def autostart(self) -> None:
        """Configure and activate, if the parameter of that name says so."""
        if not self._settings.node.autostart:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def close(self) -> None:
        """Free everything, whatever the state."""
        self._unload()

    def _load_in_thread(self) -> Loaded:
        """Load while this thread stays free to see a signal. Raises UnifyGeoError, _Stopped."""
        loaded: list[Loaded] = []
        errors: list[BaseException] = []
        steps = ["camera mount"]

        def step(name: str) -> None:
            steps.append(name)
            if self._shutting_down():
                raise _Stopped

        def work() -> None:
            try:
                mount = self._settings.camera
                if self._settings.node.camera_frame:
                    mount = mount_from_tf(mount, self._settings.node, self._shutting_down)
                    self.get_logger().info(f"Camera mount from TF: {mount}")
                else:
                    self.get_logger().info(f"Camera mount from the parameters: {mount}")
                loaded.append(load(self._settings, mount, step))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        thread.start()
        next_report_s = 0.0
        while thread.is_alive() and not self._shutting_down():
            thread.join(0.05)
            if time.monotonic() >= next_report_s:
                self._health.state(f"configuring: {steps[-1]}")
                self._publish_diagnostics()
                next_report_s = time.monotonic() + self._settings.node.diagnostics_period_s
        if self._shutting_down():
            thread.join(STOP_TIMEOUT_S)
            self.stuck = thread.is_alive()
            for late in loaded:
                late.close()
            raise _Stopped
        if errors:
            error = errors[0]
            if isinstance(error, (UnifyGeoError, _Stopped)):
                raise error
            self.get_logger().error("".join(traceback.format_exception(error)))
            raise ConfigurationError(f"loading failed with {type(error).__name__}: {error}") from error
        return loaded[0]

    def _stop(self) -> bool:
        """End subscriptions and worker. Returns whether the worker ended; if not, its engines must be left alone."""
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        self._enabled = self._triggered = False
        if self._worker is not None:
            ended = self._worker.stop(STOP_TIMEOUT_S)
            self._worker = None
            self.stuck |= not ended
            if not ended:
                self._loaded = None
            return ended
        return True

    def _unload(self) -> None:
        if self._jump_handle is not None:
            # The clock keeps a bare pointer to the handle: freed without this, it is called at the next jump.
            self._jump_handle.unregister()
            self._jump_handle = None
        self._stop()
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None

    def _shutting_down(self) -> bool:
        return not self.context.ok()

    def _guard_transitions(self) -> None:
        """Answer an impossible transition with success = false. rclpy raises an RCLError for it out of the executor,
        which would end the node (Humble to Jazzy)."""
        service = self._service_change_state
        change_state = service.callback

        def guarded(request: Any, response: Any) -> Any:
            try:
                return change_state(request, response)
            except Exception as error:
                self.get_logger().error(f"Transition {request.transition.id} refused: {error}")
                response.success = False
                return response

        service.callback = guarded

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        node = self._settings.node
        compressed = node.image_transport == "compressed"
        kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self._listen(kind, topic, self._on_image, IMAGE_QUEUE)
        self._listen(Odometry, "odometry", self._on_odometry, MOTION_QUEUE)
        self._listen(Imu, "imu", self._on_imu, MOTION_QUEUE)
        self._listen(PoseWithCovarianceStamped, "initial_pose", self._on_initial_pose, 1)

    def _listen(self, kind: type, topic: str, callback: Callable[[Any], None], depth: int) -> None:
        reliable = self._settings.node.reliability == "reliable"
        qos = QoSProfile(
            depth=depth, reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        )
        resolved = self.resolve_topic_name(topic)

        def incompatible(event: Any) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind)
            self._health.incompatible_qos(resolved, policy)
            self.get_logger().warning(
                f"A publisher on {resolved} offers an incompatible {policy}, nothing will arrive from it; "
                "set the parameter reliability"
            )

        def lost(event: Any) -> None:
            if topic.startswith("image"):
                self._health.images_lost(event.total_count_change)

        try:
            events = SubscriptionEventCallbacks(incompatible_qos=incompatible, message_lost=lost)
            subscription = self.create_subscription(kind, topic, callback, qos, event_callbacks=events)
        except UnsupportedEventTypeError:
            self.get_logger().info(f"This middleware does not report incompatible or lost messages on {resolved}")
            subscription = self.create_subscription(kind, topic, callback, qos)
        self._inputs.append(subscription)

    def _on_image(self, message: Image | CompressedImage) -> None:
        arrived_s = time.monotonic()
        wanted = self._enabled or self._triggered
        self._health.image_arrived(ignored=not wanted)
        if not wanted or self._worker is None:
            return
        self._triggered = False
        transport_s = (self.get_clock().now().nanoseconds - stamp_ns(message.header)) / 1e9
        if self._worker.inbox.put(Frame(message, arrived_s, transport_s, self._settings.node.future_stamp_s)):
            self._health.image_dropped()

    def _on_odometry(self, message: Odometry) -> None:
        if self._loaded is not None:
            sample = odometry_sample(message, self._settings.node.map_frame)
            self._note("odometry", self._loaded.session.add_odometry(sample))

    def _on_imu(self, message: Imu) -> None:
        if self._loaded is not None:
            self._note("imu", self._loaded.session.add_imu(imu_sample(message)))

    def _on_initial_pose(self, message: PoseWithCovarianceStamped) -> None:
        if self._loaded is None:
            return
        frame, expected = message.header.frame_id.lstrip("/"), self._settings.node.map_frame
        if frame != expected:
            self._note("initial pose", f"in frame {frame!r}, must be {expected!r}")
            return
        self._note("initial pose", self._loaded.session.set_initial_pose(initial_pose(message)))

    def _note(self, source: str, refusal: str | None) -> None:
        if refusal is not None:
            self._health.input_refused(f"{source}: {refusal}")
            self.get_logger().warning(f"Refused {source}: {refusal}", throttle_duration_sec=5.0)

    def _on_clock_jump(self, jump: TimeJump) -> None:
        self.get_logger().warning("The clock was set back or changed its source; the localizer starts anew")
        self._health.clock_jumped()
        self._forget()

    def _forget(self) -> None:
        if self._worker is not None:
            self._worker.inbox.clear()
        if self._loaded is not None:
            self._loaded.session.reset()

    # -- services and parameters --------------------------------------------------------------------------------------

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self._worker is None:
            response.success, response.message = False, "the node is not active; activate it first"
            return response
        self._enabled = request.data
        if not request.data:
            self._worker.inbox.clear()
        response.success, response.message = True, "enabled" if request.data else "disabled"
        return response

    def _on_trigger(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Localize the next image, be the node enabled or not. The answer does not wait for it: its fix goes to ~/fix,
        its rejection to the diagnostics."""
        silence_s, timeout_s = self._health.seconds_since_image, self._settings.node.image_timeout_s
        if self._worker is None or silence_s is None:
            response.success, response.message = False, "the node is not active; activate it first"
        elif silence_s > timeout_s:
            response.success = False
            response.message = f"no image for {silence_s:.1f} s, image_timeout_s is {timeout_s:g}; check the camera"
        else:
            self._triggered = True
            response.success, response.message = True, "the next image will be localized"
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._loaded is not None
        response.message = "the drive is forgotten" if response.success else "the node is not configured"
        self._forget()
        return response

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            settings = changed_settings(self._settings, parameters, configured=self._loaded is not None)
        except ConfigurationError as error:
            return refused(error)
        self._settings = settings
        if self._loaded is not None:
            self._loaded.localizer.reconfigure(settings.localizer)
            self._loaded.session.reconfigure(settings.session)
        return SetParametersResult(successful=True)

    # -- outputs: the worker's outlet ---------------------------------------------------------------------------------

    def fix(self, fix: Fix) -> None:
        """Publish a fix. Called by the worker."""
        assert self._loaded is not None
        node = self._settings.node
        self._fix_publisher.publish(pose_message(fix, node.map_frame))
        datum = self._loaded.index.manifest.datum
        self._navsat_publisher.publish(navsat_message(fix, node.base_frame, datum.height_m))

    def aside(self, image: CameraImage, result: Fix | Rejection, observation: Observation | None) -> None:
        """Publish what is beside the fix. Called by the worker."""
        assert self._loaded is not None
        node = self._settings.node
        yaw_rad = result.yaw_rad if isinstance(result, Fix) else observation.heading.yaw_rad if observation else 0.0
        if result.hypotheses:
            self._hypotheses_publisher.publish(
                hypotheses_message(result.hypotheses, result.stamp_ns, yaw_rad, node.map_frame)
            )
        now_s = time.monotonic()
        if observation and node.heatmap_period_s > 0 and now_s >= self._next_heatmap_s:
            self._next_heatmap_s = now_s + node.heatmap_period_s
            grid = heatmap_message(observation.distributions[0], result.stamp_ns, node.map_frame)
            self._heatmap_publisher.publish(grid)
        wanted = node.debug_image_period_s > 0 and now_s >= self._next_debug_image_s
        if wanted and self._debug_publisher.get_subscription_count():
            self._next_debug_image_s = now_s + node.debug_image_period_s
            pixels = draw_debug_image(image, result, observation, self._loaded.index)
            self._debug_publisher.publish(jpeg_message(pixels, result.stamp_ns, node.base_frame))

    def report(self) -> list[DiagnosticStatus]:
        """The diagnostics since the last report."""
        return self._health.report(
            self.get_name(), enabled=self._enabled, image_timeout_s=self._settings.node.image_timeout_s
        )

    def _publish_diagnostics(self) -> None:
        message = DiagnosticArray(status=self.report())
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(message)
