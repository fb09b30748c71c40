"""The constants that `ghostserve simulate` needs, measured on a real engine, and the simulator held against one."""
