"""Skeletons from crops: pose estimators behind one interface, and the engine that runs them over a dataset."""
