"""What is promised about safety, proven by trying to break it: here what needs no ROS, and how findings are told."""
