"""The commands, one small file per group; `app` puts them together, `failures` turns what fails into a line."""
