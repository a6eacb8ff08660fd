"""From a video of a scene to tracklets: crops of each person."""
