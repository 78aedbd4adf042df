"""A few minutes on two cores, nothing to download: what prototypes do, and a page that shows it.

    main(out, seeds, quick, open)    runs it, prints what was found, writes the page and its numbers
    run(seeds, quick)                runs it and gives the `Result`

    data          handwriting that comes with scikit-learn
    views         two views of each image
    backbone      a small convolutional network
    arms          four ways to train: with and without KoLeo-proto, centering and explicit balancing
    training      one run; measures what is looked at
    processes     two of them, of one thread each
    experiment    all runs
    command       what is printed and written
    prices        what a wrong prior costs, exactly

The prototypes' collapse (Govindarajan et al. 2024) and explicit balancing (Maniadis Metaxas et al. 2024) show within
minutes. That a matching prior finds another factor of the data (Assran et al. 2023) does not: of it there is the exact
price only.
"""

from prototile.demo.command import main
from prototile.demo.experiment import run
from prototile.reports.demo_result import Result

__all__ = ["Result", "main", "run"]
