"""The decoder: what one step computes, and on what machine. It decides nothing and keeps no clock."""
