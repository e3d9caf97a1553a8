"""Checks what hooks return, at the place where they return. Errors name the plugin and the hook."""
