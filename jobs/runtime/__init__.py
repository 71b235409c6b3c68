"""What commands share: Ray, start and end, logs, telemetry, progress."""
