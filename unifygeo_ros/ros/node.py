"""The lifecycle node: parameters to settings, messages to records, records to messages.

Threads
-------
The executor (one thread) answers services, takes messages and never waits for an image. The worker (one thread while
active) localizes. Loading runs in a thread of its own while the configure transition waits for it, because a compiler
of engines may take minutes and a signal must end the process meanwhile.

rclpy's MultiThreadedExecutor is not used: with 30 images and 150 IMU samples a second it took 80% of a core, the
single-threaded one 7%. What that waits for in vain costs as much as what it waits for: `RareEvents`.
"""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpHandle, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.waitable import Waitable
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.conversions.from_messages import stamp_ns
from unifygeo_ros.core.errors import ConfigurationError, UnifyGeoError
from unifygeo_ros.core.time import NS_PER_S, ns_from_s
from unifygeo_ros.localization.camera_mount import rig_mount
from unifygeo_ros.localization.panorama import composed_columns
from unifygeo_ros.parameters.settings import NODE_NAME
from unifygeo_ros.rig.pairing import ImageSet
from unifygeo_ros.ros.camera_mount import mount_from_tf
from unifygeo_ros.ros.geographic_services import GeographicServices
from unifygeo_ros.ros.health import Health
from unifygeo_ros.ros.image_conversion import ImageConversion, choose_image_conversion
from unifygeo_ros.ros.inbox import Frame
from unifygeo_ros.ros.inputs import Inputs
from unifygeo_ros.ros.loading import Loaded, load
from unifygeo_ros.ros.outputs import Outputs
from unifygeo_ros.ros.parameters import changed_settings, declare_parameters, read_settings, refused
from unifygeo_ros.ros.pose_output import PoseOutput
from unifygeo_ros.ros.python_logging import logged_by
from unifygeo_ros.ros.rare_events import EventHandler, RareEvents
from unifygeo_ros.ros.rig import LiveRig, RigSets, live_rig
from unifygeo_ros.ros.worker import Worker
from unifygeo_ros.sessions.rig_panorama import RigPanoramas
from unifygeo_ros.tracking.region import region_of

STOP_TIMEOUT_S = 5.0
"""How long the node waits for the end of an image, or of a step of loading, when it has to stop."""

SIGNAL_PERIOD_S = 0.05
"""How often a transition that waits for the loader checks whether the process was asked to stop."""


class _Stopped(Exception):
    """The process was asked to stop while a model was loading."""


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
                if not node.context.ok():
                    return result  # the process is ending: rclpy refuses whatever is created or published now
                node.transition_failed(callback.__name__.removeprefix("on_"), error)
                return result

        return guarded

    return decorate


class LocalizerNode(LifecycleNode):  # type: ignore[misc]  # rclpy brings no types
    """See docs/reference/node.md for topics, services and parameters."""

    def __init__(self, **options: Any) -> None:
        """options: of rclpy's LifecycleNode. Raises ConfigurationError for a parameter override that cannot be used."""
        self._rare_events = RareEvents()  # rclpy creates publishers at once
        super().__init__(NODE_NAME, **options)
        declare_parameters(self)
        self._settings = read_settings(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._health = Health()
        self._loaded: Loaded | None = None
        self._conversion: ImageConversion
        self._outputs: Outputs | None = None
        self._pose: PoseOutput | None = None
        self._geographic_services: GeographicServices | None = None
        self._inputs: Inputs | None = None
        self._python_log = contextlib.ExitStack()
        """Holds the handler that writes Python's log messages to the node's log."""
        self._worker: Worker | None = None
        self._rig_sets: RigSets | None = None
        self._jump_handle: JumpHandle | None = None
        self._enabled = False
        self._triggered = False
        self._failure: str | None = None  # why the last transition failed, for on_error
        self.stuck = False
        """Whether a thread of this node was given up because a library call did not return."""

        # Diagnostics and services exist in every state: they say why a configuration failed.
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/trigger", self._on_trigger)
        self.create_service(Trigger, "~/reset", self._on_reset)
        # A steady clock: diagnostics go on while a simulated clock stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        period_s = self._settings.node.diagnostics_period_s
        self._diagnostics_timer = self.create_timer(period_s, self._publish_diagnostics, clock=steady)
        self._guard_transitions()

    # -- lifecycle --------------------------------------------------------------------------------------------------

    @_reported(TransitionCallbackReturn.FAILURE)
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and check everything; on FAILURE the reason is in the log and the diagnostics."""
        self._python_log.close()  # of an earlier configuration that failed
        self._python_log.enter_context(logged_by(self.get_logger()))
        try:
            self._settings = read_settings(self)
            self._diagnostics_timer.timer_period_ns = ns_from_s(self._settings.node.diagnostics_period_s)
            self._loaded = self._load()
            self._loaded.session.apply_estimates = self._settings.node.apply_estimates
            self._create_pose_interfaces(self._loaded.index)
        except UnifyGeoError as error:
            self.get_logger().error(f"Configuration failed: {error}")
            self._unload()
            self._health.state("unconfigured", f"configuration failed: {error}", model={})
            self._publish_diagnostics()
            return TransitionCallbackReturn.FAILURE
        except _Stopped:
            return TransitionCallbackReturn.FAILURE
        self._conversion = choose_image_conversion()
        identity = {**self._loaded.identity, "images": self._conversion.name}
        for key, value in identity.items():
            self.get_logger().info(f"{key}: {value}")
        index = self._loaded.index
        height_m = index.manifest.datum.height_m
        self._outputs = Outputs(self, self._settings.node, index, height_m, self._conversion, self._pose)
        self._health.state("inactive", model=identity)
        jump_ns = ns_from_s(self._settings.session.time_jump_s)
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-jump_ns), on_clock_change=True)
        # The session restarts when the stamps of images jump back; the clock may jump before an image arrives.
        self._jump_handle = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)
        return TransitionCallbackReturn.SUCCESS

    @_reported(TransitionCallbackReturn.FAILURE)
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen and localize."""
        assert self._loaded is not None
        assert self._outputs is not None
        result = super().on_activate(state)
        self._enabled, self._triggered = self._settings.node.enabled, False
        self._outputs.set_localized(False)
        rig, decode = self._loaded.rig, self._conversion.camera_image
        if rig is not None:
            panoramas = self._rig_panoramas(self._loaded, rig)
            self._rig_sets = RigSets(self, rig, self._settings.rig, panoramas, self._on_set)
        self._inputs = Inputs(
            self,
            self._settings,
            self._loaded.session,
            self._health,
            self._on_image if self._rig_sets is None else self._rig_sets.take,
            () if rig is None else tuple(rig.sources),
            self._pose.on_odometry if self._pose is not None else None,
        )
        self._worker = Worker(
            self._loaded.session,
            self._outputs,
            self._health,
            self._inputs.watch,
            functools.partial(decode, least_width=self._loaded.localizer.enough_columns)
            if rig is None
            else panoramas.panorama,
            self.get_logger(),
            self._shutting_down,
        )
        self._health.state("active")
        return result

    @_reported(TransitionCallbackReturn.ERROR)
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening; the model and the index stay loaded, and the session is reset."""
        if not self._stop():
            self._failure = f"the image in work did not end within {STOP_TIMEOUT_S:g} s; its engines were given up"
            self.get_logger().error(f"Deactivation failed: {self._failure}")
            return TransitionCallbackReturn.ERROR
        assert self._loaded is not None
        assert self._outputs is not None
        self._forget()
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
            super().on_deactivate(LifecycleState(0, ""))  # silences the publishers
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
        """Free everything, in any state."""
        self._unload()

    def _load(self) -> Loaded:
        """Load in another thread while this one stays free to see a signal. Raises UnifyGeoError, _Stopped."""
        steps = ["camera mount"]

        def step(name: str) -> None:
            steps.append(name)
            if self._shutting_down():
                raise _Stopped

        def work() -> Loaded:
            mount, origin, rig = self._settings.camera, "the parameters", None
            if self._settings.rig:
                rig = live_rig(self._settings, self.resolve_topic_name, self._shutting_down)
                mount, origin = rig_mount(mount, rig.rig), "the rig's centre"
            elif self._settings.node.camera_frame:
                mount, origin = mount_from_tf(mount, self._settings.node, self._shutting_down), "TF"
            self.get_logger().info(f"Camera mount from {origin}: {mount}")
            return load(self._settings, mount, rig, step)

        loader = ThreadPoolExecutor(1, "loader")
        future = loader.submit(work)
        loader.shutdown(wait=False)
        next_report_s = 0.0
        while not future.done() and not self._shutting_down():
            wait([future], SIGNAL_PERIOD_S)
            if time.monotonic() >= next_report_s:
                self._health.state(f"configuring: {steps[-1]}")
                self._publish_diagnostics()
                next_report_s = time.monotonic() + self._settings.node.diagnostics_period_s
        if self._shutting_down():
            self._give_up(future)
            raise _Stopped
        try:
            return future.result()
        except (UnifyGeoError, _Stopped):
            raise
        except Exception as error:
            self.get_logger().error("".join(traceback.format_exception(error)))
            raise ConfigurationError(f"loading failed with {type(error).__name__}: {error}") from error

    def _rig_panoramas(self, loaded: Loaded, rig: LiveRig) -> RigPanoramas:
        settings = self._settings
        return RigPanoramas(
            rig.rig,
            rig.sources,
            composed_columns(loaded.localizer.bundle.manifest.ground),
            loaded.session.inputs,
            settings.session,
            settings.localizer.minimum_brightness,
            self._conversion.camera_image,
        )

    def _create_pose_interfaces(self, index: MapIndex) -> None:
        """What is published between images, and the conversions that nav2 asks for. Raises ConfigurationError."""
        settings = self._settings
        if settings.node.ll_services:
            self._geographic_services = GeographicServices(self, index.frame)
        if settings.session.mode == "sequence":
            self._pose = PoseOutput(self, settings, region_of(index))
        elif settings.node.publish_tf:
            raise ConfigurationError(
                "publish_tf is true and session.mode is single, which follows no track; set session.mode to sequence, "
                "or publish_tf to false and let an EKF publish map → odom"
            )

    def _give_up(self, future: Future[Loaded]) -> None:
        """Wait a moment for the loader, and free what it loaded all the same."""
        done, _ = wait([future], STOP_TIMEOUT_S)
        self.stuck = not done
        if done and future.exception() is None:
            future.result().close()

    def _stop(self) -> bool:
        """End inputs and worker. Returns whether the worker ended; if not, its engines must be left alone."""
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._rig_sets is not None:
            self._rig_sets.close()
            self._rig_sets = None
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
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        if self._pose is not None:
            self._pose.close()
            self._pose = None
        if self._geographic_services is not None:
            self._geographic_services.close()
            self._geographic_services = None
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None
        self._python_log.close()

    def _shutting_down(self) -> bool:
        return not self.context.ok()

    def _guard_transitions(self) -> None:
        """Answer an impossible transition with success = false.

        rclpy raises an RCLError for it out of the executor, which would end the node (Humble to Jazzy; rclpy 7.1.6
        seen, ros2/rclpy has no public hook for it).
        """
        service = getattr(self, "_service_change_state", None)
        if service is None:
            self.get_logger().warning(
                "This rclpy has no _service_change_state: an impossible transition may end the node"
            )
            return
        change_state = service.callback

        def guarded(request: Any, response: Any) -> Any:
            try:
                return change_state(request, response)
            except Exception as error:
                self.get_logger().error(f"Transition {request.transition.id} refused: {error}")
                response.success = False
                return response

        service.callback = guarded

    # -- events ------------------------------------------------------------------------------------------------------

    def add_waitable(self, waitable: Waitable) -> None:
        """rclpy's, which calls it for each event of a publisher or subscription."""
        if isinstance(waitable, EventHandler):
            waitable.callback_group = self._rare_events
        super().add_waitable(waitable)

    def _on_image(self, topic: str, message: Image | CompressedImage) -> None:
        self._take(message, stamp_ns(message.header))

    def _on_set(self, images: ImageSet) -> None:
        self._take(images, images.stamp_ns)

    def _take(self, message: Image | CompressedImage | ImageSet, stamp: int) -> None:
        """An image, or a rig's set of them, for the worker."""
        arrived_s = time.monotonic()
        wanted = self._enabled or self._triggered
        self._health.image_arrived(ignored=not wanted)
        if not wanted or self._worker is None:
            return
        self._triggered = False
        transport_s = (self.get_clock().now().nanoseconds - stamp) / NS_PER_S
        if self._worker.inbox.put(Frame(message, stamp, arrived_s, transport_s)):
            self._health.image_dropped()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        self.get_logger().warning("The clock was set back or changed its source; the session restarts")
        self._health.clock_jumped()
        self._forget()

    def _forget(self) -> None:
        if self._worker is not None:
            self._worker.inbox.clear()
        if self._loaded is not None:
            self._loaded.session.reset()
        if self._pose is not None:
            self._pose.reset()
        if self._outputs is not None:
            self._outputs.set_localized(False)
        self._health.drive_forgotten()

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
        """Localize the next image even while disabled.

        Returns at once; the fix goes to ~/fix, a rejection to the diagnostics.
        """
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
        response.message = "the session is reset" if response.success else "the node is not configured"
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
            self._loaded.session.apply_estimates = settings.node.apply_estimates
        if self._outputs is not None:
            self._outputs.reconfigure(settings.node)
        if self._pose is not None:
            self._pose.reconfigure(settings)
        return SetParametersResult(successful=True)

    def report(self) -> list[DiagnosticStatus]:
        """The diagnostics since the last report."""
        config = self._settings.node
        name = self.get_fully_qualified_name().lstrip("/")
        statuses = self._health.report(
            name,
            enabled=self._enabled,
            image_timeout_s=config.image_timeout_s,
            filter_history_s=config.filter_history_s,
            sources=self._inputs.reports() if self._inputs is not None else (),
            frames=self._inputs.frames() if self._inputs is not None else {},
            missing_cameras=self._rig_sets.problems() if self._rig_sets is not None else {},
            rig=self._rig_sets.values() if self._rig_sets is not None else {},
        )
        return statuses if self._pose is None else [*statuses, self._pose.report(name)]

    def _publish_diagnostics(self) -> None:
        message = DiagnosticArray(status=self.report())
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(message)
        self._rare_events.open()
        if self._outputs is not None:
            self._outputs.tend()
