"""Sensor readings: Beam makes hourly statistics of them, an agent judges the suspicious hours and raises alerts."""
