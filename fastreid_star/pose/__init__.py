"""Skeletons of crops: pose estimators with one interface, and their use on a whole dataset."""
