"""Does every printed number follow from its run? And where does one come from?"""
