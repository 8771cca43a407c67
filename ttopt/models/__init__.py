"""The networks: reasoner, teacher, chat models; loading them, and several processes that share one."""
