"""What operating systems do with an IOMMU, as things one can run and measure.

One file a scenario, and nothing else to register: a module of this package that defines
`SCENARIO` is one.
"""
