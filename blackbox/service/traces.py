"""Export of a service's traces by OTLP; the standard OTEL_* variables say where to."""

from __future__ import annotations

from importlib.metadata import version

from blackbox.errors import MissingDependencyError

__all__ = ["export_traces"]


def export_traces() -> None:
    """Set up the SDK of OpenTelemetry: spans go out in batches, by OTLP over HTTP.

    It reads OTEL_EXPORTER_OTLP_ENDPOINT and _HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
    OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_SDK_DISABLED, and more.

    Raises
    ------
    MissingDependencyError
        If the SDK or its exporter is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"traces need {error.name}: pip install 'promptboosting[otel]'"
        ) from error
    ours = {SERVICE_NAME: "blackbox", "service.version": version("promptboosting")}
    given = OTELResourceDetector().detect().attributes
    provider = TracerProvider(resource=Resource.create({**ours, **given}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
