"""The matrix runner: a YAML file of methods and tasks becomes cells, one launch works through them, a table comes out.

`config` reads the file, `cells` names what is to be computed, `store` keeps it, `launch` starts and watches the worker
process, `worker` computes, `table` and `plot` show. The truth about a cell is its result on disk, nothing else.
"""
