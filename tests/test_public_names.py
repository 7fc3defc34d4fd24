"""The package's public names: looked up when first used, and all there."""

import pytest

import peftcli


def test_every_public_name_is_there():
    for name in peftcli.__all__:
        assert getattr(peftcli, name) is not None, name


def test_every_public_name_but_the_version_has_its_counterpart_in_peft():
    import peft
    import peft.helpers
    import peft.optimizers
    import peft.tuners.lora.config
    import peft.tuners.lora.corda
    import peft.utils.hotswap

    lora = (peft.tuners.lora.config, peft.tuners.lora.corda)
    places = (peft, peft.helpers, peft.optimizers, peft.utils, peft.utils.hotswap, *lora)
    names = [name for name in peftcli.__all__ if name != "__version__"]
    assert [name for name in names if not any(hasattr(place, name) for place in places)] == []


def test_dir_lists_the_public_names():
    assert set(peftcli.__all__) <= set(dir(peftcli))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'LoRAConfig'"):
        _ = peftcli.LoRAConfig
