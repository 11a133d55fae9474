"""Retraining that goes on: collect, train, judge, publish, announce."""
