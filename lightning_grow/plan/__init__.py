"""The target's tape run on blocks of units: a plan, which is data only."""
