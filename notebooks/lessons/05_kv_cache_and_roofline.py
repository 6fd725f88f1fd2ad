# %% [markdown] key="title" lang="zh" partner="e6da869e"
# # 05 · KV 缓存与屋顶线
#
# 产品要上一个小助手：Qwen3-0.6B，100 个用户同时在线，每人 4,096 个 token 的上下文，每人每秒至少看到 50 个 token。
# 手上是一块 24 GB 的卡。同事算完账说：「权重才 1.2 GB，卡几乎是空的，装几百人没问题。嫌慢，就换一块算力翻倍的。」
# 两句话，哪一句能信？
#
# 学完这一课，你能做三件事：
#
# - 从模型的 config 算出一个 token 占多少 KV 缓存，一块卡装得下多少用户；
# - 由带宽和算力两个数说出一步最快要多久，知道该为哪一个付钱；
# - 量出自己的引擎离这个下限有多远，远在哪里。

# %% [markdown] key="title" lang="en" partner="08848b21"
# # 05 · KV cache and roofline
#
# The product wants a small assistant: Qwen3-0.6B, 100 users at once, a context of 4,096 tokens each, and no
# fewer than 50 tokens a second for everybody. There is one card of 24 GB. A colleague has done the sum: "The
# weights are 1.2 GB, the card is next to empty, it will hold hundreds. And if it's slow, we take the card
# with twice the arithmetic." Two claims; which one do you believe?
#
# After this lesson you can
#
# - work out from a model's config what a token costs in KV cache, and how many users a card holds;
# - say from two numbers, bandwidth and arithmetic, how fast a step can be at best, and which of the two to
#   pay for;
# - measure how far above that floor your own engine is, and where the distance comes from.

# %% key="imports"
import numpy as np
import torch

from servinglib.cache.block_pool import BlockPool
from servinglib.course import check, hint
from servinglib.course.exercises.lesson05 import books, judge
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.transformers_engine import choose_dtype
from servinglib.experiments.roofline import (
    Roofline,
    decode_steps,
    matmul_rate,
    matrices_time,
    prefill_steps,
    read_bandwidth,
)
from servinglib.experiments.serving_run import drift, fit_step_time, serve
from servinglib.models.shapes import BENCH_SHAPES, COURSE_SHAPES
from servinglib.plots import COLOURS, MEASURED, SIMULATED, THEORY, figure, label
from servinglib.policies.step_time import StepTime
from servinglib.workload import LogNormal, RequestSpec, Uniform, poisson, token_prompts
from simulations.continuous import simulate_continuous
from simulations.theory.decode import kv_bytes_per_token
from simulations.theory.fluid import marginal_work

# %% [markdown] key="predict" lang="zh" partner="a8dfb79c"
# ## 先押注
#
# 这块卡装得下多少个满上下文的用户？20 个用户在线时，换上算力翻倍、别的都不变的卡，出字会快几倍？

# %% [markdown] key="predict" lang="en" partner="d48d05cc"
# ## Place your bet
#
# How many users with a full context does the card hold? And with 20 users online, by what factor does a card
# with twice the arithmetic, all else equal, speed up their tokens?

# %% key="guess"
guessed_users = 300
guessed_speedup = 2.0

# %% [markdown] key="two" lang="zh" partner="17a15c59"
# ## 一个新 token 要算什么
#
# 注意力让新 token 回头看前面每个 token 的键和值。前面的 token 不会再变，它们的键和值也不会变，算过一次就可以留下来：
# 这就是 KV 缓存。没有它，每写一个 token 都要把全文当作提示重算一遍，写 $n$ 个 token 一共要算 $n(n+1)/2$ 次。
#
# 同一个引擎就能看到两种做法。读一段 $n$ 个 token 的提示再给出一个 token，这一步叫**预填充**，没有缓存的引擎每次都得做它；
# 之后每步只算一个 token，这叫**解码**。引擎的 `steps` 记着每一步模型用了多久。

# %% [markdown] key="two" lang="en" partner="8a205de9"
# ## What a new token takes
#
# Attention lets a new token look back at the key and the value of every token before it. Those tokens don't
# change any more, and neither do their keys and values, so they are computed once and kept: the KV cache.
# Without it, each token would mean reading the whole text again as a prompt, and $n$ tokens would take
# $n(n+1)/2$ token computations.
#
# One engine shows both ways. To read a prompt of $n$ tokens and give one token is a **prefill** step, and an
# engine without a cache would have to do it every time. From then on each step computes a single token:
# **decode**. The engine's `steps` say how long the model took for each.

# %% key="two-code"
tiny = ContinuousEngine.load("course-tiny", device="cpu", prefix_caching=False)
tiny.warm_up()
lengths = (16, 64, 256, 1024)
without = [prefill_steps(tiny, n) * 1e3 for n in lengths]
cached = [decode_steps(tiny, running=1, context=n) * 1e3 for n in lengths]

fig, ax = figure(
    "What was computed need not be computed again",
    "tokens before the new one",
    "time for the next token (ms)",
    xscale="log",
    xticks=lengths,
)
for times, name, colour in ((without, "all anew", "orange"), (cached, "with KV cache", "blue")):
    [line] = ax.plot(lengths, times, color=COLOURS[colour], marker="o")
    label(ax, line, name)
ax.set(xlim=(14, 3000), ylim=0)
n = lengths[-1]
print(f"an answer of {n:,} tokens: {n * (n + 1) // 2:,} token computations without a cache, {n:,} with one")
print(f"token number {n:,}: {without[-1]:.1f} ms anew, {cached[-1]:.1f} ms with the cache")

# %% [markdown] key="two-reading" lang="zh" partner="8144cf9b"
# 再看一眼橙线：左端，读 64 个 token 的提示用不了读 16 个的四倍时间，因为权重读一遍大家共用；越往右，算术越占上风，
# 时间就跟着 token 数走。解码的一步里每个序列只有一个 token，读一遍权重只乘几行。一个服务里住着两种负载：
# 预填充忙在算术，管着首 token 延迟；解码忙在内存，管着每 token 时间。

# %% [markdown] key="two-reading" lang="en" partner="04c08dba"
# Look at the orange line again. On the left, to read 64 tokens of prompt takes less than four times what 16
# take, since all share one reading of the weights; further right arithmetic takes over, and time goes with
# the number of tokens. A decode step holds one token of each sequence and reads all the weights to multiply
# a few rows. Two kinds of load live in one service: prefill keeps arithmetic busy and sets the time to first
# token, decode keeps memory busy and sets the time per output token.

# %% [markdown] key="bytes" lang="zh" partner="03dc86ee"
# ## 一个 token 留下多少字节
#
# 每一层、每个 KV 头留下一个键和一个值：
#
# $$k = 2 \cdot \text{层数} \cdot \text{KV 头数} \cdot \text{头的大小} \cdot \text{每个数的字节数}$$
#
# KV 头可以比查询头少：几个查询头共用一个 KV 头，叫分组查询注意力（GQA）。表里的 MHA 一列是不共用时的代价。
# 最后一列是一块 24 GB 的卡，拿出九成，减去权重，再除以 4,096 个 token 的 KV 缓存。全部按 bf16，每个数 2 字节。

# %% [markdown] key="bytes" lang="en" partner="8b47967b"
# ## How many bytes a token leaves
#
# Each KV head of each layer keeps one key and one value:
#
# $$k = 2 \cdot \text{layers} \cdot \text{KV heads} \cdot \text{head size} \cdot \text{bytes per number}$$
#
# There may be fewer KV heads than query heads: several of the latter share one, which is grouped-query
# attention (GQA). The column MHA shows the price without sharing. The last one takes nine tenths of a card of
# 24 GB, subtracts the weights, and divides by the KV cache of 4,096 tokens. All in bf16, 2 bytes per number.

# %% key="bytes-code" tags=["nbval-check-output"]
models = {  # weights, layers, query heads, KV heads, head size
    "course-tiny": (4_197_120, 4, 4, 2, 64),
    "bench-30m": (29_369_856, 8, 8, 4, 64),
    "Qwen3-0.6B": (596_049_920, 28, 16, 8, 128),
    "Llama-3-8B": (8_030_261_248, 32, 32, 8, 128),
}
card = 0.9 * 24e9  # bytes
print("model          weights     KV/token       as MHA    KV of 4,096     users on 24 GB")
for name, (weights, layers, heads, kv_heads, size) in models.items():
    per_token = kv_bytes_per_token(layers, kv_heads, size, 2)
    as_mha = kv_bytes_per_token(layers, heads, size, 2)
    users = int((card - 2 * weights) // (4096 * per_token))
    print(
        f"{name:12s}{2 * weights / 1e9:7.2f} GB {per_token:9,.0f} B {as_mha:10,.0f} B "
        f"{4096 * per_token / 1e6:10.1f} MB {users:12,d}"
    )

# %% [markdown] key="bytes-reading" lang="zh" partner="b4286298"
# 同事只看了权重。一个满上下文的用户占 470 MB，三个用户就超过了全部权重，卡上装 43 人就满了。
# 表里还有一处意外：参数差了十几倍的两个模型，每个 token 留下的字节几乎一样多。KV 缓存的大小只看层数、KV 头数和头的大小，
# 和「模型有多少参数」不是一回事。所以读 config，别按参数估。
#
# 引擎在分配内存之前，做的是同一道题：

# %% [markdown] key="bytes-reading" lang="en" partner="faf4c0c1"
# The colleague looked at the weights only. One user with a full context takes 470 MB, three take more than
# all the weights, and with 43 the card is full. The table holds a surprise as well: two models whose sizes
# differ by more than ten times leave nearly the same bytes per token. KV cache depends on layers, KV heads
# and head size, and "how many parameters" is another question. Read the config, don't guess from the size.
#
# The engine does the same sum before allocating:

# %% key="memory-code"
dtype = getattr(torch, choose_dtype("auto", "cpu"))
print(f"the formula: {kv_bytes_per_token(4, 2, 64, dtype.itemsize):,.0f} bytes per token in {dtype}")
print(f"the engine:  {tiny.memory.bytes_per_token:,} bytes per token")
print(tiny.memory)

# %% [markdown] key="pages" lang="zh" partner="2765e5dd"
# ## 分页：浪费从一整条缩到半块
#
# 回答有多长，开始时谁也不知道。早期的引擎按最大长度给每个序列预留一整条连续内存，大半用不上。
# 分页的办法像衣帽间的挂钩：来一件给一个。内存切成每块 $B$ 个 token 的**块**，序列写满一块再领下一块，
# **块表**记着它的第几块放在哪里。浪费的只有没写满的最后一块；若长度除以 $B$ 的各种余数机会均等，平均浪费
#
# $$\frac{B-1}{2}\ \text{个 token}$$
#
# 拿引擎自己的 `BlockPool` 量一量：1,000 个长短不一的序列，理论对实测。

# %% [markdown] key="pages" lang="en" partner="46630b8e"
# ## Pages: from a whole rail to half a block
#
# How long an answer will be nobody knows when it begins. Early engines reserved the maximum for every
# sequence, one contiguous strip, most of which stayed empty. Paging works like the hooks of a cloakroom: one
# per coat, as they come. Memory is cut into **blocks** of $B$ tokens; a sequence that has filled one gets
# the next, and its **block table** says where each of its blocks lies. Only the last block is filled in
# part, and if all remainders of a length modulo $B$ are equally likely, the mean waste is
#
# $$\frac{B-1}{2}\ \text{tokens}$$
#
# The engine's own `BlockPool` is the judge: 1,000 sequences of uneven lengths, theory beside what it hands out.

# %% key="waste-code" tags=["nbval-check-output"]
held = LogNormal(median=200, sigma=0.9, longest=2048).sample(np.random.default_rng(5), 1000)
print("block size   waste per sequence in tokens      share of memory wasted")
for size in (1, 4, 16, 64, 256, 2048):
    pool = BlockPool(num_blocks=10**6, block_size=size)
    taken = sum(len(pool.allocate(pool.blocks_for(int(n)))) for n in held) * size
    theory = (size - 1) / 2 if size < 2048 else 2048 - held.mean()
    wasted = (taken - held.sum()) / len(held)
    print(f"{size:7d}      theory {theory:7.1f}, pool {wasted:7.1f} {1 - held.sum() / taken:20.1%}")

# %% [markdown] key="dial" lang="zh" partner="5140d6c1"
# 最后一行的块和最大长度一样大，那就是旧办法。所以「预留」和「分页」不是两个系统，而是同一个旋钮的两端。
# 浪费的内存本来能换什么？换同时在算的序列。48 个请求同时到达，内存只够 1,024 个 token，块大小从 1 拧到 256
# （这里没有序列长过 192）。理论把块数除以一个序列平均占的块数；仿真和引擎跑的是**同一段调度代码**。

# %% [markdown] key="dial" lang="en" partner="b8465154"
# In the last row a block is as large as the longest sequence, and that is the old way. So "reserve" and
# "page" are not two systems but two ends of one dial. What could the wasted memory have bought? Sequences
# that run at the same time. Here 48 requests come at once, memory holds 1,024 tokens, and the dial turns
# from blocks of 1 to blocks of 256 (no sequence outgrows 192). Theory divides the number of blocks by how
# many a sequence holds on average; simulation and engine run **the same planning code**.

# %% key="dial-code" tags=["nbval-check-output"]
KV, OUTPUT = 1024, 48  # tokens
prompts = np.random.default_rng(6).integers(16, 145, size=48).tolist()
texts = token_prompts(prompts, tiny.vocabulary, seed=6)
options = {"device": "cpu", "prefix_caching": False, "context_length": 256}
options["kv_cache_memory"] = KV * tiny.memory.bytes_per_token
lengths_held = np.concatenate([np.arange(p, p + OUTPUT) for p in prompts])


def busy(running):  # mean over the first three quarters, while the queue is never empty
    return np.mean(running[: len(running) * 3 // 4])


dial = {}
print("block size   sequences at a time: theory, simulated, engine   steps simulated, engine   preemptions")
for size in (1, 16, 64, 256):
    crowd = [RequestSpec(0.0, p, OUTPUT) for p in prompts]
    run = simulate_continuous(crowd, StepTime(a=1, b=0), kv_blocks=KV // size, block_size=size)
    with ContinuousEngine.load("course-tiny", block_size=size, **options) as engine:
        engine.generate(texts, max_tokens=OUTPUT, ignore_eos=True)
    theory = KV // size / np.ceil(lengths_held / size).mean()
    dial[size] = theory, busy([s.running for s in run.steps]), busy([s.sequences for s in engine.steps])
    steps = len(run.steps), len(engine.steps)
    preempted = run.preemptions.sum(), engine.statistics.num_preemptions
    print("{:7d}{:30.1f}{:9.1f}{:9.1f}{:17d}{:6d}{:14d}{:4d}".format(size, *dial[size], *steps, *preempted))

# %% key="dial-figure"
fig, ax = figure(
    "Smaller blocks, more at a time",
    "block size (tokens)",
    "sequences in a step",
    xscale="log",
    xticks=list(dial),
)
theory, simulated, measured = zip(*dial.values(), strict=True)
ax.plot(list(dial), theory, label="theory", **THEORY)
ax.plot(list(dial), measured, linestyle="", label="engine", **{**MEASURED, "markersize": 9})
ax.plot(list(dial), simulated, linestyle="", label="simulated", **SIMULATED)
ax.set_ylim(0)
_ = ax.legend()

# %% [markdown] key="dial-reading" lang="zh" partner="aa7049cd"
# 仿真和引擎相同，连抢占次数也一样：决定「谁上这一步」的代码里没有时钟，也没有张量。理论略高，
# 因为它把内存填得不留缝，而队首的请求要等到整段提示都放得下才进得来。同样的内存，小块让步数少了一半。
#
# 块小到 16，好处就快拿完了；再小，块表更长，内核每次取的数据更碎。这就是 16 成为惯例的原因。
# 代价也在表里：不预留，就可能半路没了块，后来的序列只好让位、以后重算，这叫抢占，第 06 课细讲。

# %% [markdown] key="dial-reading" lang="en" partner="022bc79c"
# Simulation and engine agree, down to the number of preemptions: the code that decides who is in a step knows
# neither clock nor tensor. Theory is a little higher, since it fills memory without gaps, while the first in
# the queue comes in only when its whole prompt fits. With the same memory, small blocks
# take half the steps.
#
# At 16 most of the gain is had; smaller ones make longer tables and give kernels less to fetch at a time. So
# 16 is the custom. The price is in the table too: without reservation blocks may run out halfway, and the
# last to come gives way, to be computed again later: preemption, the matter of lesson 06.

# %% [markdown] key="machine" lang="zh" partner="5b701c94"
# ## 两个数：带宽和算力
#
# 一步要做两件事：把权重和缓存从内存搬来，再拿它们做乘加。像一根水管接一座水磨，快慢由更慢的那个决定，加宽另一个没有用。
# 两个数都能量。算力：做一个大矩阵乘法。带宽：把同一块内存反复读。注意「带宽」不是一个数：
# 数据放得进哪一级缓存，就是哪一级的速度。所以要按权重的大小去读这条曲线。

# %% [markdown] key="machine" lang="en" partner="d4c6c01a"
# ## Two numbers: bandwidth and arithmetic
#
# A step does two things: it fetches weights and cache from memory, and it multiplies them. Think of a water
# pipe and a mill at its end: the slower one sets the pace, and to widen the other is no use. Both can be
# measured, arithmetic by a large matrix product, and bandwidth by reading one piece of memory over and over.
# Mind that "the bandwidth" is not one number: data that fit a cache come at the speed of that cache. So read
# the curve at the size of your weights.

# %% key="machine-code"
early = matmul_rate(dtype)
sizes = 2.0 ** np.arange(0, 9)  # MiB
speeds = [read_bandwidth(int(size * 2**20)) / 1e9 for size in sizes]
flops = max(early, matmul_rate(dtype))  # whatever else runs makes it slower, never faster
shapes = {"course-tiny": COURSE_SHAPES["course-tiny"], "bench-30m": BENCH_SHAPES["bench-30m"]}
floors = {}

fig, ax = figure(
    "Bandwidth depends on how much you read", "read over and over (MiB)", "GB/s", xscale="log", xticks=sizes
)
ax.plot(sizes, speeds, **MEASURED)
ax.set_ylim(0)
for name, shape in shapes.items():
    floors[name] = Roofline.of(
        shape, read_bandwidth(shape.parameters * dtype.itemsize), flops, dtype.itemsize
    )
    mib = floors[name].weight_bytes / 2**20
    ax.axvline(mib, color="#999999", linewidth=1)
    ax.annotate(f" {name}", (mib, max(speeds)), fontsize=9.5)
    print(f"{name}: {mib:.0f} MiB of weights, read at {floors[name].bandwidth / 1e9:.1f} GB/s")
print(f"arithmetic: {flops / 1e9:,.0f} GFLOPS in {dtype}")

# %% [markdown] key="roof" lang="zh" partner="90325c6c"
# ## 屋顶线：下限，以及离下限有多远
#
# 一步里有 $n$ 个 token，回头看的上下文共 $K$ 个 token。权重 $P$ 个，占 $w$ 字节；带宽 $\beta$，算力 $F$。那么
#
# $$\tau \ge \max\left(\frac{w + K k}{\beta},\ \frac{2Pn}{F}\right)$$
#
# 左边是读，右边是算（每个权重一次乘、一次加）。$n$ 小、上下文短的时候左边大，曲线几乎是平的：多带几个序列差不多不要钱。
# 公式不问这 $n$ 个 token 是 $n$ 个用户各一个，还是一段提示里的 $n$ 个。
#
# 下面量三样东西：下限；只做模型的那些矩阵乘法要多久；引擎完整的一步，解码和预填充各量一遍。

# %% [markdown] key="roof" lang="en" partner="c1983384"
# ## The roofline: the floor, and how far above it we are
#
# A step holds $n$ tokens, which look back at a context of $K$ tokens in all. There are $P$ weights in $w$
# bytes; bandwidth is $\beta$ and arithmetic $F$. Then
#
# $$\tau \ge \max\left(\frac{w + K k}{\beta},\ \frac{2Pn}{F}\right)$$
#
# Reading is on the left, computing on the right (a multiplication and an addition per weight). For small $n$
# and short contexts the left one wins and the curve is almost flat: a few more sequences cost next to
# nothing. The formula doesn't ask whether the $n$ tokens are one of each of $n$ users, or $n$ of a single
# prompt.
#
# Three things are measured: the floor; the model's matrix products by themselves; and whole steps of the
# engine, for decode and for prefill.

# %% key="roof-code"
batches = (1, 4, 16, 64)
options = {"device": "cpu", "prefix_caching": False, "max_num_seqs": 64}
measured, plain = {}, {}
for name, shape in shapes.items():
    floor, products = floors[name], matrices_time(shape, dtype, batches)
    with ContinuousEngine.load(name, **options) as engine:
        engine.warm_up()
        decode = [decode_steps(engine, n, context=32) for n in batches]
        prefill = [prefill_steps(engine, n) for n in batches]
    with ContinuousEngine.load(name, attention="torch", **options) as engine:
        engine.warm_up()
        plain[name] = decode_steps(engine, 1, context=32) - matrices_time(shape, dtype, (1,), "torch")[0]
    measured[name] = products, decode, prefill
    print(f"{name} (ms)   floor   products alone   decode step   prefill step")
    for n, *times in zip(batches, products, decode, prefill, strict=True):
        row = [1e3 * t for t in (floor(n, 32 * n), *times)]
        print("  {:3d} tokens{:13.2f}{:17.2f}{:14.2f}{:15.2f}".format(n, *row))
print("one sequence, beside the products, in us per layer: the engine, and one small operation at a time")
for name, (products, decode, _) in measured.items():
    rest = [1e6 * t / shapes[name].num_hidden_layers for t in (decode[0] - products[0], plain[name])]
    print("  {:12s}{:6.0f}{:6.0f}".format(name, *rest))


# %% key="roof-figure"
fig, ax = figure(
    "bench-30m: a floor, and what stands on it",
    "tokens in the step",
    "time (ms)",
    xscale="log",
    xticks=batches,
)
many = np.geomspace(1, 64, 100)
products, decode, prefill = (np.multiply(times, 1e3) for times in measured["bench-30m"])
ax.plot(many, floors["bench-30m"](many, 32 * many) * 1e3, label="roofline", **THEORY)
ax.plot(batches, products, color=COLOURS["green"], marker="^", label="matrix products alone")
ax.plot(batches, decode, label="engine, decode", **MEASURED)
ax.plot(batches, prefill, color=COLOURS["purple"], marker="D", label="engine, prefill")
ax.set_ylim(0)
_ = ax.legend()

# %% [markdown] key="roof-reading" lang="zh" partner="02d54a3d"
# 虚线下面不该有点，这是它的全部承诺；要是有，就是带宽或者峰值量低了。离虚线有多远，要一层一层看。
#
# 从虚线到矩阵乘法：真实的矩阵不够大，达不到峰值。从矩阵乘法到整步：归一化、旋转位置、注意力、激活，每层十几个小操作。
# 最后三行是证据。右边一列让 PyTorch 逐个执行它们，连矩阵乘法也按它的办法做：两个模型大小差好几倍，
# **每一层**多出的时间却远没有差那么多，因为贵的主要是「调用一次」，不是数据。左边一列是引擎：行数很少时，一整层编译成一个循环，
# 只调用一次，时间少了一截。模型越小，这笔开销占得越多。GPU 上它叫启动开销，CUDA graph 和融合内核就是为它发明的。
#
# 行数一多，引擎就换回分块的矩阵乘法，所以解码曲线在开头几行之后会上一个台阶：把步耗时写成直线，只是近似。
#
# 批大了，解码涨得比预填充多，除了这个台阶，还因为 64 个用户各有各的缓存要翻，一段提示里的 64 个 token 翻的是同一份。
# 公式里管这件事的是 $Kk/\beta$。它准不准？让 8 个序列带上长短不同的上下文，直接量出每个 KV token 的价。

# %% [markdown] key="roof-reading" lang="en" partner="f0f5b15f"
# There should be no point below the dashes, and that is all they promise; if there is one, bandwidth or peak was
# measured too low. How far above them a point lies is read layer by layer.
#
# From the dashes to the products: real matrices are too small to reach the peak. From the products to the
# whole step: norms, rotary positions, attention, activations, a dozen small operations and more in each
# layer. The last three lines are the evidence. In the right column PyTorch does them one at a time, and the
# products its own way: one model is several times the size of the other, but what they spend **per layer**
# differs far less, since mostly the call costs, not the data. The left column is the engine: for very few
# rows a whole layer is compiled into one call, and a good part of the time is gone. The smaller the model,
# the larger the share of all this. On a GPU this is launch overhead, and CUDA graphs and fused kernels were
# invented against it.
#
# With more rows the engine goes back to products in blocks, so the decode curve jumps after its first few
# rows: a straight line for step times is an approximation.
#
# With the batch, decode grows more than prefill, not only by that jump: 64 users have a cache each to go
# through, while the 64 tokens of a prompt share one. In the formula this is $Kk/\beta$. Is it right? Give 8
# sequences contexts of several lengths, and measure the price of a KV token.

# %% key="context-code"
contexts = (64, 256, 512)
bench = ContinuousEngine.load("bench-30m", device="cpu", prefix_caching=False)
bench.warm_up()
taken = np.array([decode_steps(bench, 8, context) for context in contexts]) * 1e3
price, fixed = np.polyfit(np.multiply(contexts, 8), taken, 1)  # ms per KV token, ms

fig, ax = figure(
    "8 sequences with longer and longer memories",
    "context of each (tokens)",
    "decode step (ms)",
    xticks=contexts,
)
ax.plot(contexts, taken, linestyle="", label="engine", **MEASURED)
ax.plot(contexts, floors["bench-30m"](8, np.multiply(contexts, 8)) * 1e3, label="roofline", **THEORY)
ax.set_ylim(0)
_ = ax.legend()
reading = floors["bench-30m"].token_bytes / floors["bench-30m"].bandwidth
print(f"a KV token: {price * 1e3:.2f} us in the engine, {reading * 1e6:.2f} us to read it")
print(f"contexts of {fixed / price / 8:.0f} tokens double the step of an empty context")

# %% [markdown] key="context-reading" lang="zh" partner="a5342677"
# 形状，公式说对了：序列个数不变，步耗时随上下文直线上升。大小要看打印的两个单价差几倍：差得多，说明这台机器上的注意力
# 不是卡在内存，而是卡在算术上，换个好内核还有得赚。无论几倍，结论不变：**上下文不是白带的，每一步都要再付一次。**

# %% [markdown] key="context-reading" lang="en" partner="ac97946c"
# The formula has the shape right: with as many sequences as before, a step grows in a straight line with the
# context. Its size is another matter: compare the two printed prices. A large factor means that attention on
# this machine is held up not by memory but by arithmetic, and a better kernel could gain. Whatever the factor: **a
# context is not carried for free, it is paid for again in every step.**

# %% [markdown] key="card" lang="zh" partner="ccc33cee"
# ## 回到那块卡：批再大也碰不到算力的屋顶
#
# 你多半听过：「批到一百多，GPU 就从带宽瓶颈转到算力瓶颈了」，那个转折叫屋脊点。这句话少了一项。
# 每加一个序列，算的时间多 $2P/F$，**读的时间也多** $\bar{c}k/\beta$，$\bar{c}$ 是它的上下文长度。两者相等的批大小是
#
# $$n^* = \frac{w/\beta}{2P/F - \bar{c}k/\beta}$$
#
# 分母不为正时它不存在：批再大，算力也追不上读缓存。下面用 NVIDIA 公布的 A10 规格（24 GB，600 GB/s，稠密 bf16 125 TFLOPS）
# 算 Qwen3-0.6B。这是**算术**，不是测量。

# %% [markdown] key="card" lang="en" partner="a2dd8707"
# ## Back to the card: no batch reaches the roof of arithmetic
#
# You have probably heard that "from a batch of a hundred or so a GPU turns from bandwidth-bound to
# compute-bound", at what is called the ridge point. A term is missing. Every further sequence adds $2P/F$ of
# computing, and it **also adds reading**, $\bar{c}k/\beta$ for a context of $\bar{c}$ tokens. The two are
# equal at the batch
#
# $$n^* = \frac{w/\beta}{2P/F - \bar{c}k/\beta}$$
#
# and where the denominator isn't positive there is none: however large the batch, computing never catches up
# with reading the cache. The cell takes Qwen3-0.6B on NVIDIA's published data of an A10 (24 GB, 600 GB/s,
# dense bf16 125 TFLOPS). It is **arithmetic** and not a measurement.

# %% key="card-code" tags=["nbval-check-output"]
qwen = BENCH_SHAPES["bench-0.6b"]  # the shape of Qwen3-0.6B
a10 = Roofline.of(qwen, bandwidth=600e9, flops=125e12)
faster_mill = Roofline.of(qwen, bandwidth=600e9, flops=250e12)
wider_pipe = Roofline.of(qwen, bandwidth=1200e9, flops=125e12)
print(f"one user, empty context: {1 / a10(1, 0):,.0f} tokens/s at best")
print(f"contexts above {a10.computing(1) * a10.bandwidth / a10.token_bytes:.0f} tokens: never compute-bound")

users, full = np.arange(1, 101), 4096
fit = int((card - a10.weight_bytes) // (full * a10.token_bytes))
quick = users[a10(users, full * users) <= 1 / 50].max()
print(
    f"users of {full:,} tokens: {fit} fit, {quick} get 50 tokens/s or more; cards for 100: {-(-100 // quick)}"
)
step = a10(20, 20 * full)
print(f"20 users: {step * 1e3:.1f} ms a step, of which computing needs {a10.computing(20) / step:.1%}")
speedup = step / faster_mill(20, 20 * full)
print(f"twice the arithmetic: x {speedup:.2f}; twice the bandwidth: x {step / wider_pipe(20, 20 * full):.2f}")
print(f"you said {guessed_users} users, and x {guessed_speedup:.2f} for twice the arithmetic")

# %% key="card-figure"
fig, ax = figure(
    "Qwen3-0.6B on an A10: context keeps you off the roof",
    "users",
    "tokens/s, all users, at best",
    xscale="log",
    yscale="log",
)
for context in (16, 256, 4096):
    most = (card - a10.weight_bytes) / (context * a10.token_bytes)
    n = np.geomspace(1, most, 200)
    [line] = ax.plot(n, n / a10(n, context * n), marker="")
    label(ax, line, f"context {context:,}")
n = np.geomspace(60, 12_000, 50)
ax.plot(n, n / a10.computing(n), label="roof of arithmetic", **THEORY)
ax.set_xlim(1, 60_000)
_ = ax.legend()

# %% [markdown] key="card-reading" lang="zh" partner="bdc076d1"
# 每条线的右端就是内存装满的地方。上下文一长，曲线早早变平，离虚线还有几十倍：那时一步的时间几乎全花在读各人的缓存上，
# 算力翻倍一分钱也不值。同事的两句话都错了。装得下不等于跑得快：43 人装得下，但要每秒 50 个 token，一块卡只够 23 人，100 人至少五块。
# 这还是下限，真实引擎要更多。
#
# 真正管用的是让 $k$ 或 $\bar{c}$ 变小：KV 头更少的模型、8 位的 KV 缓存、共享前缀（第 08 课），或者干脆限制上下文；不然就买带宽。

# %% [markdown] key="card-reading" lang="en" partner="10569b22"
# Each line ends where memory is full. With a long context it goes flat early, and dozens of times below the
# dashes: nearly the whole step is spent on reading everybody's cache, and twice the arithmetic isn't worth a
# penny. Both of the colleague's claims were wrong. What fits need not be fast: 43 users fit, but at 50 tokens
# a second one card serves 23, and 100 users take at least five cards. And that is a floor; a real engine
# needs more.
#
# What does help is a smaller $k$ or $\bar{c}$: a model with fewer KV heads, a KV cache of 8 bits, shared
# prefixes (lesson 08), or simply a limit on the context; and else, bandwidth.

# %% [markdown] key="columns" lang="zh" partner="81e464b5"
# ## 三列对照：同一串请求
#
# 现在让 `bench-30m` 真的上班：泊松到达，提示和回答长短不齐。三列：
#
# - **屋顶线**：仿真里每一步恰好用下限那么久；这两个数不变，谁也不可能更快；
# - **仿真**：步耗时是 $\tau = a + bn + cK + dP$，四个数由引擎自己的另一次运行拟合，这里的 $P$ 是提示 token 数；
# - **实测**：真引擎。
#
# 到达率取拟合容量的六成。`drift` 是运行时的步比拟合慢了多少。

# %% [markdown] key="columns" lang="en" partner="fa475ffa"
# ## Three columns, one list of requests
#
# Now `bench-30m` goes to work: Poisson arrivals, prompts and answers of uneven lengths. The columns:
#
# - **roofline**: a simulation in which every step takes just the floor; with these two numbers nobody can be
#   faster;
# - **simulated**: steps take $\tau = a + bn + cK + dP$, with four numbers fitted to another run of this
#   engine; $P$ is the number of prompt tokens here;
# - **measured**: the real engine.
#
# The rate is six tenths of the fitted capacity. `drift` says how much slower the run's steps were than fitted.

# %% key="columns-code"
laws = {"prompts": Uniform(16, 160), "outputs": Uniform(8, 48)}
sample = poisson(1000, count=32, seed=1, **laws)
fitted = fit_step_time((await serve(bench, sample)).steps)
work = marginal_work(fitted, [r.prompt_tokens for r in sample], [r.output_tokens for r in sample])
workload = poisson(0.6 / work, count=48, seed=2, **laws)
floor = floors["bench-30m"]

bound, predicted = simulate_continuous(workload, floor), simulate_continuous(workload, fitted)
run = await serve(bench, workload, seed=2)
print(f"{0.6 / work:.0f} requests/s, {len(run.steps)} steps, drift {drift(run.steps, fitted):+.0%}")
print("ms              roofline   simulated   measured")
for name, q in (("P50 latency", 50), ("P90 latency", 90)):
    row = [np.percentile(each.latencies, q) * 1e3 for each in (bound, predicted, run)]
    print("{:14s}{:10.0f}{:12.0f}{:11.0f}".format(name, *row))
row = [
    np.percentile([t.first_token - t.arrival for t in each.timelines], 50) / 1e6
    for each in (bound, predicted, run)
]
print("{:14s}{:10.0f}{:12.0f}{:11.0f}".format("P50 TTFT", *row))

# %% [markdown] key="columns-reading" lang="zh" partner="bad4235a"
# 屋顶线那一列低得多，而且差距比单独一步的差距还大：步慢了，同时在跑的请求就多，步又更慢。它说的是「不可能更快」，
# 不是「会这么快」。拟合换上从引擎自己量出的四个数，近了多少，看上表；剩下的差，先看 `drift`，再想想直线抹平的那个台阶，和几十个请求的偶然性。
#
# 两个模型各有用处。买硬件、定目标，用屋顶线：它不需要先有机器。排容量、定 SLO，用拟合：它不需要知道原因。

# %% [markdown] key="columns-reading" lang="en" partner="727a604e"
# The roofline column is far lower, and by more than a single step would explain: slower steps mean more
# requests at a time, which makes steps slower still. It says "never faster than this", not "as fast as this".
# The fit has four numbers measured on the engine itself, and the table shows how much
# nearer it comes; for what is left, look at `drift` first, then think of the jump that a straight line
# smooths over, and of how much is chance in a few dozen requests.
#
# Each model has its use. For buying hardware and setting goals, the roofline, which needs no machine yet. For
# planning capacity and promising an SLO, the fit, which needs to know no reasons.

# %% [markdown] key="breaks" lang="zh" partner="570188a0"
# ## 什么会让它失灵
#
# **模型太小。** 固定开销盖过了读权重，换更快的内存也没用；先减少操作个数。
#
# **带宽取错了地方。** 拿缓存里的速度去算放不进缓存的模型，下限会低好几倍。对照上面那条曲线。
#
# **预填充混进来。** 一段长提示让那一步从读变成算，正在解码的用户都会感到一次停顿；分块预填充限制它，第 06 课动手做。
#
# **内存不全归 KV 缓存。** 草稿模型、激活值、碎片都要地方；容量差一成，满载时就是抢占和不抢占的区别。

# %% [markdown] key="breaks" lang="en" partner="ffeeb66a"
# ## What breaks it
#
# **A model that is too small.** Fixed costs outweigh the reading of weights, and faster memory is no help; cut
# the number of operations first.
#
# **Bandwidth from the wrong place.** With the speed of a cache for a model that doesn't fit it, the floor
# comes out several times too low. Look at the curve above.
#
# **Prefill in the mix.** A long prompt turns its step from reading to computing, and everybody who decodes
# feels a pause; chunked prefill limits it, and lesson 06 does it by hand.
#
# **Memory that isn't all KV cache.** A draft model, activations and fragments want room as well; at full load a
# tenth of the capacity decides between preemption and none.

# %% [markdown] key="exercises" lang="zh" partner="41510026"
# ## 练习
#
# 写完运行单元格，`check` 会给出最小的失败例子和可能的原因。`hint("05.1")` 给提示。
#
# **05.1** 由 transformers 的 config（字典）算出每个 token 的 KV 缓存字节数，`value_bytes` 是每个数的字节数。
# 它有 `hidden_size`、`num_hidden_layers`、`num_attention_heads`、`num_key_value_heads` 和 `head_dim`。

# %% [markdown] key="exercises" lang="en" partner="7e6de5e9"
# ## Exercises
#
# Run the cell when you have written your answer: `check` shows the smallest case that fails and the likely
# cause. `hint("05.1")` gives a hint.
#
# **05.1** The bytes of KV cache per token, from a config of transformers (a dictionary); `value_bytes` is the
# size of a number. It has `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`
# and `head_dim`.


# %% key="ex1" exercise="05.1" tags=["nbval-check-output"]
def kv_bytes(config, value_bytes):
    raise NotImplementedError


check("05.1", kv_bytes)


# %% key="ex1-solution" solution="05.1" tags=["nbval-check-output"]
def kv_bytes(config, value_bytes):
    layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
    return 2 * layers * heads * config["head_dim"] * value_bytes


check("05.1", kv_bytes)

# %% [markdown] key="exercise2" lang="zh" partner="f749868e"
# **05.2** 写一个块池，替换引擎里的那个。四个方法：`num_available` 是现在还能发几块；`blocks_for` 是多少 token 占几块；
# `allocate` 返回 `count` 个互不相同的块号（调用者事先看过 `num_available`，块号从 0 到 `num_blocks - 1`）；
# `release` 收回。前缀共享不用管。`books` 用一段剧本查账：剧本的每一行说哪个序列现在有多少 token，0 表示离开。
# 通过之后，`judge` 把它装进仿真器和真引擎。

# %% [markdown] key="exercise2" lang="en" partner="6858ba2f"
# **05.2** Write a pool of blocks that takes the place of the engine's. Four methods: `num_available`, how
# many can be handed out now; `blocks_for`, how many blocks so many tokens fill; `allocate`, which returns
# `count` different block numbers (the caller has looked at `num_available`; numbers go from 0 to
# `num_blocks - 1`); and `release`, which takes them back. Never mind shared prefixes. `books` audits it with
# a script, in which each line says how many tokens a sequence has now, and 0 that it leaves. Once it passes,
# `judge` puts it into the simulator and into the real engine.


# %% key="ex2" exercise="05.2" tags=["nbval-check-output"]
class MyPool(BlockPool):
    def __init__(self, num_blocks, block_size=16):
        super().__init__(num_blocks, block_size)
        # your own books go here

    @property
    def num_available(self):
        raise NotImplementedError

    def blocks_for(self, num_tokens):
        raise NotImplementedError

    def allocate(self, count):
        raise NotImplementedError

    def release(self, blocks):
        raise NotImplementedError


check("05.2", books(MyPool))


# %% key="ex2-solution" solution="05.2" tags=["nbval-check-output"]
class MyPool(BlockPool):
    def __init__(self, num_blocks, block_size=16):
        super().__init__(num_blocks, block_size)
        self.free = list(range(num_blocks))

    @property
    def num_available(self):
        return len(self.free)

    def blocks_for(self, num_tokens):
        return -(-num_tokens // self.block_size)

    def allocate(self, count):
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    def release(self, blocks):
        self.free += blocks


check("05.2", books(MyPool))

# %% key="judge"
print(judge(MyPool))

# %% [markdown] key="exercise3" lang="zh" partner="cc44d0fa"
# **05.3** 一步解码最少几秒？`batch` 个序列，每个上下文 `context` 个 token；权重 `weight_bytes` 字节、`parameters` 个，
# 每个 token 的 KV 缓存 `token_bytes` 字节；`bandwidth` 和 `flops` 都是每秒的量。

# %% [markdown] key="exercise3" lang="en" partner="1c45ac06"
# **05.3** How many seconds does a decode step take at least? It has `batch` sequences with `context` tokens
# each; the weights are `weight_bytes` bytes and `parameters` in number, a token of KV cache is `token_bytes`
# bytes; `bandwidth` and `flops` are per second.


# %% key="ex3" exercise="05.3" tags=["nbval-check-output"]
def step_time(batch, context, weight_bytes, token_bytes, parameters, bandwidth, flops):
    raise NotImplementedError


check("05.3", step_time)


# %% key="ex3-solution" solution="05.3" tags=["nbval-check-output"]
def step_time(batch, context, weight_bytes, token_bytes, parameters, bandwidth, flops):
    reading = (weight_bytes + batch * context * token_bytes) / bandwidth
    return max(reading, 2 * parameters * batch / flops)


check("05.3", step_time)

# %% [markdown] key="exercise4" lang="zh" partner="e05c559b"
# **05.4** 从多大的批开始，算的时间不短于读的时间？返回最小的整数；没有这样的批，返回 `np.inf`。

# %% [markdown] key="exercise4" lang="en" partner="571a43d1"
# **05.4** From what batch on does computing take at least as long as reading? Return the smallest whole
# number, or `np.inf` where there is none.


# %% key="ex4" exercise="05.4" tags=["nbval-check-output"]
def compute_bound_from(context, weight_bytes, token_bytes, parameters, bandwidth, flops):
    raise NotImplementedError


check("05.4", compute_bound_from)


# %% key="ex4-solution" solution="05.4" tags=["nbval-check-output"]
def compute_bound_from(context, weight_bytes, token_bytes, parameters, bandwidth, flops):
    gain = 2 * parameters / flops - context * token_bytes / bandwidth
    return np.ceil(weight_bytes / bandwidth / gain) if gain > 0 else np.inf


check("05.4", compute_bound_from)

# %% key="close"
bench.shutdown()
tiny.shutdown()

# %% [markdown] key="summary" lang="zh" partner="af8737df"
# ## 星期一怎么做
#
# 1. 打开 config，算出每个 token 的 KV 字节数，乘以上下文：这才是一个用户的价钱，权重只付一次。
# 2. 装得下多少人是内存问题，跑得多快是带宽问题，两个都算，取小的。
# 3. 有上下文的解码基本碰不到算力屋顶；为出字快而买卡，先看带宽。算力留给预填充。
# 4. 块大小用 16，别按最大长度预留；然后盯住抢占次数。
# 5. 屋顶线定目标，拟合做预测；实测离下限几倍，就去看那几倍花在哪里。

# %% [markdown] key="summary" lang="en" partner="e13baf5a"
# ## What to do on Monday
#
# 1. Open the config and work out the KV bytes per token, times the context: that is the price of a user; the
#    weights are paid once.
# 2. How many fit is a question of memory, how fast they go is one of bandwidth; answer both and take the
#    smaller.
# 3. Decode with a context hardly ever reaches the roof of arithmetic. For faster tokens look at bandwidth
#    first; arithmetic is for prefill.
# 4. Use blocks of 16, don't reserve the maximum, and then watch the preemptions.
# 5. Set goals by the roofline, predict by the fit; where the measurement is several times the floor, find out
#    where they went.

# %% [markdown] key="references" lang="zh" partner="fe2439cf"
# ## 参考文献
#
# - S. Williams, A. Waterman, D. Patterson, *Roofline: An Insightful Visual Performance Model for Multicore
#   Architectures*, Communications of the ACM, 2009。屋顶线的出处。
# - W. Kwon 等, *Efficient Memory Management for Large Language Model Serving with PagedAttention*, SOSP 2023,
#   arXiv:2309.06180。分页的 KV 缓存。
# - J. Ainslie 等, *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*,
#   EMNLP 2023, arXiv:2305.13245。
# - R. Pope 等, *Efficiently Scaling Transformer Inference*, MLSys 2023, arXiv:2211.05102。预填充与解码的算术。
# - NVIDIA, *A10 Tensor Core GPU datasheet*。上面用到的规格。

# %% [markdown] key="references" lang="en" partner="94813023"
# ## References
#
# - S. Williams, A. Waterman, D. Patterson, *Roofline: An Insightful Visual Performance Model for Multicore
#   Architectures*, Communications of the ACM, 2009. The origin of the roofline.
# - W. Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*, SOSP
#   2023, arXiv:2309.06180. The paged KV cache.
# - J. Ainslie et al., *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*,
#   EMNLP 2023, arXiv:2305.13245.
# - R. Pope et al., *Efficiently Scaling Transformer Inference*, MLSys 2023, arXiv:2211.05102. The arithmetic
#   of prefill and decode.
# - NVIDIA, *A10 Tensor Core GPU datasheet*. The data used above.
