import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from timm.layers import use_fused_attn

from fg_ssl_zoo.config import Speed
from fg_ssl_zoo.engine import hardware

CPU = hardware.Switches(
    "cpu", "fp32", channels_last=False, fused_attention=False, keep_memory=False, threads=1
)
EPYC_ZEN5 = "processor : 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n"
XEON_WITHOUT = "processor : 0\nflags\t\t: fpu avx512f avx512_vnni\n"
GRAVITON3 = "processor : 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("cpuinfo", "precision"), [(EPYC_ZEN5, "bf16"), (XEON_WITHOUT, "fp32"), (GRAVITON3, "bf16")]
)
def test_bf16_is_chosen_only_where_the_processor_has_it(tmp_path, monkeypatch, cpuinfo, precision):
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    monkeypatch.setattr(hardware, "CPU_INFO", path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "_has_mps", lambda: False)
    assert hardware.choose(Speed(), convolutional=True).precision == precision
    forced = hardware.choose(Speed(precision="bf16"), convolutional=True)
    assert forced.precision == "bf16"


def test_channels_last_is_for_convolutions_and_every_wish_is_kept():
    assert hardware.choose(Speed(), convolutional=True).channels_last
    assert not hardware.choose(Speed(), convolutional=False).channels_last
    wishes = Speed(channels_last=False, fused_attention=True, keep_memory=False)
    switches = hardware.choose(wishes, convolutional=True)
    assert not switches.channels_last
    assert switches.fused_attention
    assert not switches.keep_memory
    assert "fused attention" in str(switches)


def test_more_threads_than_a_machine_can_use_are_refused():
    with pytest.raises(ValueError, match=r"speed\.threads: 1000 is too many for the \d+ cores"):
        hardware.choose(Speed(threads=1000), convolutional=True)


def test_a_launched_process_uses_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(hardware.psutil, "cpu_count", lambda logical: 16 if logical else 8)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 16)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "_has_mps", lambda: False)

    def threads(**speed):
        return hardware.choose(Speed(**speed), convolutional=True).threads

    assert threads() == torch.get_num_threads()  # started by hand: what the user set
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert threads() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert threads() == 4
    monkeypatch.setattr(hardware, "usable_cores", lambda: 1)
    assert threads() == 1
    assert threads(threads=3) == 3


def pretend_gpu(monkeypatch, capability):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GeForce GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_120"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: capability >= (8, 0))


def test_a_gpu_without_kernels_in_this_torch_is_refused(monkeypatch):
    pretend_gpu(monkeypatch, (6, 1))
    with pytest.raises(ValueError, match=r"GTX 1080 \(sm_61\) is too old .* needs sm_75 or later"):
        hardware.choose(Speed(), convolutional=True)
    pretend_gpu(monkeypatch, (7, 5))
    assert hardware.choose(Speed(), convolutional=True).precision == "fp32"


def test_a_launch_on_gpus_measures_with_its_share_of_the_cores(monkeypatch):
    pretend_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(hardware.psutil, "cpu_count", lambda logical: 64)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 64)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    switches = hardware.choose(Speed(), convolutional=True)
    assert (switches.device, switches.precision, switches.threads) == ("cuda", "bf16", 8)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "one process has nothing to shard; launch two or more"),
        ("ACCELERATE_USE_FSDP", "1", "one process has nothing to shard; launch two or more"),
        ("ACCELERATE_USE_DEEPSPEED", "True", "DeepSpeed is not supported"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "Megatron-LM is not supported"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", r"torch\.compile is not supported"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", r"choose speed\.precision=bf16 or fp32"),
        ("ACCELERATE_TORCH_DEVICE", "meta", "accelerate chose the device meta, the run cpu"),
    ],
)
def test_a_launch_that_is_not_supported_is_refused_by_name(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    if variable == "ACCELERATE_TORCH_DEVICE":
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(ValueError, match=message) as refused:
            hardware.create_accelerator(CPU)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert variable in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_accelerate_launch_sets_by_default_is_no_wish(monkeypatch, caplog):
    for variable in (*hardware.UNSUPPORTED, "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(variable, "no" if "DYNAMO" in variable else "false")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    hardware.create_accelerator(CPU)
    assert not caplog.text


def test_a_launch_that_accumulates_divides_no_gradient_and_is_told_so(monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator, x = hardware.create_accelerator(CPU), torch.ones((), requires_grad=True)
    accelerator.backward(3 * x)
    assert x.grad == 3
    assert "ACCUMULATION_STEPS=4 has no effect: train.accumulate splits a batch" in caplog.text
    assert "MIXED_PRECISION=bf16 has no effect: this run has speed.precision=fp32" in caplog.text


def test_accelerate_s_wish_for_a_cpu_is_the_run_s(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert hardware.choose(Speed(), convolutional=True).device == "cpu"


@pytest.mark.parametrize(("name", "expected"), [("test_resnet", True), ("test_vit", False)])
def test_a_patch_embedding_is_not_a_convolutional_network(name, expected):
    assert hardware.is_convolutional(timm.create_model(name)) == expected


def test_unfused_attention_computes_the_same():
    x = torch.randn(2, 3, 160, 160)
    outputs = []
    before = use_fused_attn()
    for fused in (False, True):
        hardware.switch_on(
            hardware.Switches(
                "cpu",
                "fp32",
                channels_last=False,
                fused_attention=fused,
                keep_memory=False,
                threads=1,
            )
        )
        torch.manual_seed(0)
        model = timm.create_model("test_vit").eval()
        assert model.blocks[0].attn.fused_attn == fused
        outputs.append(model(x).detach())
    timm.layers.set_fused_attn(before > 0)
    torch.testing.assert_close(*outputs)
