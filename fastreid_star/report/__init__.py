"""Reports as self-contained HTML files.

:func:`fastreid_star.report.build.write_report` reports on trained runs,
:func:`fastreid_star.report.dataset.write_dataset_page` on a dataset,
:func:`fastreid_star.report.ablation.write_ablation_page` on an ablation;
:func:`fastreid_star.report.zoo.update_zoo` keeps a table of trained models.
"""
