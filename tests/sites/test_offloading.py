"""Groups of diffusers' offloading, where the modules that lead them are bypassed."""

import torch

from diffcache.sites.offloading import Offloading


def test_a_group_that_lost_its_leader_twice_has_the_first_again(dit):
    dit.transformer.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=2
    )
    first, second = dit.transformer.single_transformer_blocks[:2]
    offloading = Offloading([first, second])
    group = first._diffusers_hook.get_hook("group_offloading").group
    assert group.onload_leader is first
    offloading.pass_over(first)
    # diffusers makes the next one called the leader.
    group.onload_leader = second
    offloading.pass_over(second)
    offloading.restore()
    assert group.onload_leader is first
