"""Settings of a run, and errors that name file and line.

Text in, one frozen value out; nothing is looked up that a config does not say.

- `settings`: every key with type, range and default
- `network_checks`: settings of the network that exclude each other
- `problems`: wrong settings in words
- `yaml_source`: values with the place where they were written
"""

DOOR = ("settings", "yaml_source")
"""Modules that other rooms may import."""
