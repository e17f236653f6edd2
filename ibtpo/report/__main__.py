"""python -m ibtpo.report"""

from ibtpo.report.command import main

main()
