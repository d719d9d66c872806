"""Data sets of ground panoramas and aerial tiles (VIGOR, CVUSA, CVACT, procedural towns), batches, augmentation."""
