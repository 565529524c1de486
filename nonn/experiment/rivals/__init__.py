"""Rivals of the study that need their own fusion, one module each; ``nonn.experiment.methods`` lists them.

==================  ============================================================================================
``parity``          one device learns the sum of the others' features: a single lost device is reconstructed
``synthesised``     a network predicts the features of missing devices
``imputation``      missing features are their conditional mean
``best_single``     the best student that is alive answers alone
==================  ============================================================================================
"""
