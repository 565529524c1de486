"""Distillation objectives as composable weighted terms.

=============== ============================================== ====================== ==========================
module          objectives                                     compares               depends on the batch size
=============== ============================================== ====================== ==========================
``logits``      cross entropy, kd, dkd, mutual                 answers [B, K]         no
``soft``        bkd, dkpp, cwtm, dtd                           answers [B, K]         cwtm, dtd
``activations`` activation transfer, hint, at, srrl            one part [B, C_j, …]   no
``relations``   sp, rkd, pkt                                   samples of one batch   yes
``flow``        fsp, lckd                                      two layers or more     no
``learned``     vid, crd, srm, simreg: with parameters         one part [B, C_j, …]   crd
``online``      pcl, sokd, ie_kd                               peers, replicas        no
``information`` mimkd; rtk: several layers                     one part [B, C_j, …]   mimkd
``shots``       vrkd, umts: several views                      answers, one part      no
``tails``       gcl                                            answers [B, K]         no
``points``      hint_points: with regressors                   clustered layers       no
``pixels``      pixel: draws the larger picture                the input              no
``adversarial`` afd: with discriminators                       one part [B, C_j, …]   no
=============== ============================================== ====================== ==========================

Every objective sums over feature dimensions, averages over the batch, computes in float32 and passes no gradient to
the teacher. ``registry`` has every objective by name; ``build_terms`` builds the weighted sum of a configuration.
"""

from nonn.distill.objectives._common import pool_to
from nonn.distill.objectives.activations import activation_transfer, joint_activation_transfer
from nonn.distill.objectives.batch import Batch
from nonn.distill.objectives.logits import cross_entropy, kd
from nonn.distill.objectives.terms import Term, auxiliaries, build_terms

__all__ = [
    "Batch",
    "Term",
    "activation_transfer",
    "auxiliaries",
    "build_terms",
    "cross_entropy",
    "joint_activation_transfer",
    "kd",
    "pool_to",
]
