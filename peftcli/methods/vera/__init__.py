"""VeRA: trained scales between random projections that all layers share."""
