"""The commands, one file each; `minillm_repl.repl.registry.discover` finds them."""
