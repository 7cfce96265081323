"""A kernel database that people can run: pages give it what tuning found, and ask it for winners.

`pywebgpu records serve` starts it. From the inside out:

- `aggregate.py`: many contributors' records of one kernel on one kind of device become one.
- `store.py`: contributions in SQLite or PostgreSQL; `migrations/` are its tables.
- `service.py`: the HTTP service.

It needs the extra `pywebgpu[records]`; nothing else in pywebgpu imports it.
"""
