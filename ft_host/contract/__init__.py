"""What hooks return, checked where it is returned: a mistake in a plugin is named with the plugin and the hook."""
