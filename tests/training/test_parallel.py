import pytest

from mm1_hf import MM1Config
from mm1_hf.training.parallel import distributed_config


@pytest.mark.parametrize(
    ("preset", "processes", "settings", "rows_of_their_own"),
    [
        ("mm1-tiny", 8, {"fsdp_size": 8}, 8),
        ("mm1-tiny", 8, {"fsdp_size": 2, "dp_replicate_size": 4}, 8),
        ("mm1-tiny", 4, {"fsdp_size": 2, "tp_size": 2}, 2),
        ("mm1-tiny-moe", 4, {"fsdp_size": 4, "ep_size": 2}, 4),
    ],
)
def test_sizes_that_fit_are_taken(preset, processes, settings, rows_of_their_own):
    distributed = distributed_config(MM1Config.from_preset(preset), processes, **settings)
    assert {name: getattr(distributed, name) for name in settings} == settings
    assert distributed.dp_size == rows_of_their_own


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("mm1-tiny", {"fsdp": 8}, "DistributedConfig has no field fsdp; its fields are .*fsdp_size"),
        (
            "mm1-tiny",
            {"fsdp_size": 4},
            "dp_replicate_size 1 x fsdp_size 4 x tp_size 1 is 4 processes, but 8 were started",
        ),
        ("mm1-tiny", {}, "is 1 processes, but 8 were started"),
        ("mm1-tiny", {"tp_size": 8}, "tp_size=8 does not divide the decoder's num_attention_heads=4"),
        (
            "mm1-tiny",
            {"fsdp_size": 8, "ep_size": 2},
            "ep_size=2 distributes experts .* decoder is dense: it has no experts. Leave",
        ),
        ("mm1-tiny-moe", {"fsdp_size": 8, "ep_size": 8}, "ep_size=8 does not divide the decoder's 4 experts"),
        ("mm1-tiny-moe", {"fsdp_size": 8, "ep_size": 3}, "`ep_size` must divide"),
        ("mm1-tiny", {"pp_size": 8}, "does not support pipeline parallelism"),
        ("mm1-tiny", {"fsdp_size": 0}, "must be >= 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(preset, settings, message):
    with pytest.raises(ValueError, match=message):
        distributed_config(MM1Config.from_preset(preset), 8, **settings)
