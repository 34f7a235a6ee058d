"""`doctor`: can this machine run a profile? Each finding comes with what to do about it.

Nothing is changed and nothing large is read: whatever takes longer than seconds is left to the
commands that need it. What the machine is asked is in `probes`, which tests replace.
"""

from llds_core.machine.doctor.examine import examine
from llds_core.machine.doctor.findings import Finding
from llds_core.machine.doctor.probes import Gpu, Gpus, Probes

__all__ = ["Finding", "Gpu", "Gpus", "Probes", "examine"]
