# %% [markdown] key="title" lang="zh" partner="278e59f0"
# # 01 · 批处理曲线
#
# 同事的服务一次只处理一个请求，机器从早忙到晚。下个月流量要翻几番，他来找你批预算：再买几台同样的机器。
# 批，还是不批？
#
# 学完这一课，你能做三件事：
#
# - 从任何一个推理引擎上量出两个数 $\alpha$ 和 $\tau_0$，由它们算出每种批大小的吞吐量上限；
# - 为给定的流量选批大小，并说出这会让 P50 和 P99 延迟变成多少；
# - 认出批处理帮不上忙的场合，那时才去买机器。
#
# 全程只用你自己的机器，不需要 GPU，也不需要联网。

# %% [markdown] key="title" lang="en" partner="b8ea9841"
# # 01 · The batching curve
#
# A colleague's service handles one request at a time, and its machine is busy all day. Next month the
# traffic multiplies, so he asks you to sign for more machines of the same kind. Do you?
#
# After this lesson you can
#
# - read two numbers, $\alpha$ and $\tau_0$, off any inference engine, and work out from them the most
#   that each batch size can carry;
# - choose a batch size for a given traffic, and say what P50 and P99 latency it costs;
# - tell when batching will not help, which is the time to buy machines.
#
# Everything runs on your own machine, without a GPU and without a network.

# %% key="imports"
import asyncio

import numpy as np

from servinglib.course import check, hint
from servinglib.engines.registry import load_engine
from servinglib.experiments.batching_curve import (
    Shape,
    make_requests,
    measure_batch_times,
    measure_saturation,
    measure_under_load,
    poisson_arrivals,
    three_columns,
)
from servinglib.experiments.columns import Latencies
from servinglib.plots import MEASURED, SIMULATED, THEORY, figure
from servinglib.server.batch_server import BatchInferenceServer

# %% [markdown] key="predict" lang="zh" partner="0aba8005"
# ## 先押注
#
# 先猜再量，记得才牢。把 `max_batch_size` 从 1 改成 16，你认为吞吐量会变成原来的几倍？
# 再猜一个不那么直觉的：流量**不变**、只是略高于逐个处理的极限时，批处理会让 P99 延迟变成原来的几倍？
# 把下面两个数改成你的答案，本课结尾会拿它们和实测对账。

# %% [markdown] key="predict" lang="en" partner="cd287213"
# ## Place your bet
#
# What you guessed first, you remember. If `max_batch_size` goes from 1 to 16, by what factor does
# throughput grow? And the less obvious one: with the **same** traffic, slightly more than one at a time
# can carry, by what factor does batching change the P99 latency? Put your answers into the cell; the end
# of the lesson settles the account.

# %% key="guess"
guessed_throughput_factor = 2.0
guessed_p99_factor = 1.5

# %% [markdown] key="one" lang="zh" partner="3472d8e0"
# ## 一个请求，看它怎么出来
#
# `course-tiny` 是随课程附带的小模型，读过 Python 标准库，写出来的东西看上去像 Python。
# 引擎把答案**逐个 token** 交出来，每个 token 带着它出现的时刻，所以首 token 延迟（TTFT）和之后每个 token
# 的时间（TPOT）都是量出来的，不是估计的。

# %% [markdown] key="one" lang="en" partner="ba1ebccf"
# ## One request, watched
#
# `course-tiny` ships with the course: a small model that has read Python's standard library and writes
# what looks like Python. The engine hands out its answer **token by token**, each with the time at which it
# appeared, so the time to first token (TTFT) and the time per output token after it (TPOT) are measured
# and not estimated.

# %% key="one-code"
with load_engine("transformers", "course-tiny", device="cpu") as tiny:
    tiny.warm_up()
    start = tiny.now()
    prompt = "def read_lines(path):\n    "
    events = list(tiny.stream(prompt, max_tokens=48))

print(prompt + "".join(event.text for event in events))
times = [event.time - start for event in events]
print(f"\nTTFT {times[0] * 1e3:.1f} ms")
print(f"TPOT {(times[-1] - times[0]) / (len(times) - 1) * 1e3:.1f} ms over {len(times)} tokens")

# %% [markdown] key="server" lang="zh" partner="356d1e06"
# ## 在一个单元格里开一台服务器
#
# 测负载要一个重一点的模型。`bench-30m` 的形状和真模型一样，权重是随机的：它说的话没有意义，
# 但一次矩阵乘法要多久，和权重的值无关。首次使用会在本机缓存里生成它，需要几秒。
#
# `BatchInferenceServer` 站在引擎前面。调用者各自 `await server.predict(...)`，谁也不知道别人的存在；
# 服务器把等着的请求凑成一批交给引擎。规则只有一句：**批满了就走；窗口到点了，没满也走。**
# 本课把窗口设成 0，空闲的服务器遇到谁就带谁走。
# 下面同时发出 8 个请求，看看它们是怎么上车的。

# %% [markdown] key="server" lang="en" partner="dc918a50"
# ## A server in a cell
#
# To measure load we want a heavier model. `bench-30m` has the shape of a real one and random weights:
# what it says is nonsense, but how long a matrix product takes does not depend on the values in it. It is
# built into your cache on first use, in seconds.
#
# `BatchInferenceServer` stands in front of the engine. Each caller awaits its own `await server.predict(...)`
# and knows nothing of the others; the server gathers those who wait and gives them to the engine as one
# batch. Its rule is one sentence: **leave when the batch is full, or when the window is over.** In this
# lesson the window is 0, so an idle server leaves with whoever is there. Here are 8 requests sent at
# once; watch how they board.

# %% key="server-code"
engine = load_engine("transformers", "bench-30m")
engine.warm_up()
shape = Shape(prompt_tokens=32, output_tokens=12)  # every request of this lesson

async with BatchInferenceServer(engine, max_batch_size=4, max_wait_time=0) as server:
    answers = await asyncio.gather(*(server.predict(r) for r in make_requests(8, shape)))

print("batch sizes:", dict(server.statistics.batch_sizes))
print("queue   prefill  decode   (ms)")
for answer in answers:
    t = answer.timeline
    parts = (t.scheduled - t.received, t.first_token - t.scheduled, t.finished - t.first_token)
    print("{:7.1f} {:7.1f} {:7.1f}".format(*(ns / 1e6 for ns in parts)))

# %% [markdown] key="boarding" lang="zh" partner="7f4f9685"
# 前一批在算的时候，后面的在排队：它们的 `queue` 大约等于前一批的 `prefill` 加 `decode`。
# 同一批里每个请求的计算时间一样长，因为它们是一起算的。请求的总延迟由四段相加而成，
# 网络、排队、预填充、解码，一纳秒不差；第 02 课专门拆它。

# %% [markdown] key="boarding" lang="en" partner="ea725d4c"
# While one batch computes, the next waits: its `queue` is about the `prefill` and `decode` of the one
# before. Within a batch all compute for equally long, because they compute together. A request's latency
# is the sum of four parts, network, queue, prefill and decode, exact to the nanosecond; lesson 02 takes it
# apart.

# %% [markdown] key="law" lang="zh" partner="11cdf6cd"
# ## 两个数说清一切
#
# 一批要多久？像一班车：发一趟车有固定成本 $\tau_0$，每多一位乘客加 $\alpha$。
#
# $$H(b) = \alpha b + \tau_0$$
#
# 别信，量。下面把各种大小的批各跑几轮，轮流着跑，这样机器偶尔变慢时，各种大小都摊上一份。

# %% [markdown] key="law" lang="en" partner="b7045d99"
# ## Two numbers tell it all
#
# How long does a batch take? Like a bus: the trip has a fixed cost $\tau_0$, and every passenger adds
# $\alpha$.
#
# $$H(b) = \alpha b + \tau_0$$
#
# Don't believe it, measure it. The cell runs batches of each size, in rounds, so that when the machine
# has a slow moment every size gets its share.

# %% key="law-code"
batch_times = measure_batch_times(engine, sizes=(1, 2, 4, 8, 16), repeats=4, shape=shape)
law = batch_times.law

fig, ax = figure("A batch costs a fixed part and a part per request", "batch size b", "batch time (ms)")
for size, seconds in batch_times.samples.items():
    ax.plot([size] * len(seconds), np.multiply(seconds, 1e3), linestyle="", **MEASURED)
line = np.array([0, 16])
ax.plot(line, law(line) * 1e3, **THEORY)
ax.set(xlim=0, ylim=0)
print(f"H(b) = {law.alpha * 1e3:.2f} ms * b + {law.tau0 * 1e3:.1f} ms")
print(f"half of all that batching can gain is gained at b = tau0/alpha = {law.tau0 / law.alpha:.1f}")

# %% [markdown] key="why" lang="zh" partner="9179bbc8"
# 为什么有 $\tau_0$？生成一个 token 要把**全部权重**从内存里读一遍。一个请求读一遍，十六个请求也只读一遍：
# 权重进了缓存，顺手多乘几行而已。$\tau_0$ 里是读权重和框架的固定开销，$\alpha$ 里才是每个请求自己的算术。
# 比值 $\tau_0/\alpha$ 就是这台机器有多「喜欢」批处理：批大到这个数，吞吐量正好到达极限 $1/\alpha$ 的一半。

# %% [markdown] key="why" lang="en" partner="3207e1ee"
# Why is there a $\tau_0$? To generate a token, **all the weights** have to be read from memory. One request
# reads them once, and sixteen read them once too: with the weights at hand, a few more rows are cheap.
# Reading weights and the framework's fixed costs are in $\tau_0$; only a request's own arithmetic is in
# $\alpha$. The ratio $\tau_0/\alpha$ tells how much this machine likes batches: at that size throughput
# is at exactly half of its limit $1/\alpha$.

# %% [markdown] key="capacity" lang="zh" partner="3a5ab73d"
# ## 吞吐量：预测，然后实测
#
# 批总是满的时候，每 $H(b)$ 秒离开 $b$ 个请求，所以容量是
#
# $$\frac{b}{\alpha b + \tau_0} \to \frac{1}{\alpha} \quad (b \to \infty)$$
#
# 这条线用的全是上一张图的数。现在让真服务器饱和：任何时刻都有两批请求在里面。
# 开头和收尾不算，那时服务器没有满。

# %% [markdown] key="capacity" lang="en" partner="47e5a309"
# ## Throughput: predict, then measure
#
# With full batches, $b$ requests leave every $H(b)$ seconds, so the capacity is
#
# $$\frac{b}{\alpha b + \tau_0} \to \frac{1}{\alpha} \quad (b \to \infty)$$
#
# All of this line comes from the previous figure. Now drive the real server to saturation, with two
# batches' worth of requests inside at any time. Start and end don't count, since the server is not full
# then.

# %% key="capacity-code"
sizes = (1, 2, 4, 8, 16)
saturation = {}
for size in sizes:
    run = await measure_saturation(engine, size, shape, batches=max(8, 24 // size))
    saturation[size] = run.requests_per_s
    print(f"b={size:2d}: measured {saturation[size]:6.1f} requests/s, predicted {law.capacity(size):6.1f}")

fig, ax = figure(
    "Throughput climbs, ever more slowly",
    "max_batch_size",
    "requests/s at saturation",
    xticks=sizes,
    xscale="log",
)
ax.plot(sizes, [law.capacity(size) for size in sizes], label="b/(αb+τ₀)", **THEORY)
ax.plot(sizes, list(saturation.values()), linestyle="", label="measured", **MEASURED)
ax.set_ylim(0)
ax.legend()
throughput_factor = saturation[16] / saturation[1]

# %% [markdown] key="latency" lang="zh" partner="734263b0"
# ## 延迟：同一串到达时刻，三列对照
#
# 饱和吞吐量是上限，不是日子。真实的请求随机到达，所以给每台服务器加上它**自己容量的七成**，泊松到达。
# 延迟从请求**计划**到达的时刻算起：客户端发晚了，那也是用户在等（第 12 课会当场抓住不这么算的工具）。
#
# 三列分别是：
#
# - **实测**：真服务器，真引擎；
# - **仿真**：SimPy 里跑的是服务器自己的批处理规则和队列代码，到达时刻也是同一串，只有批耗时换成了
#   从实测样本里抽取的值；
# - **理论**：把批耗时当作恰好 $H(b)$，求出无限长运行的精确分布。
#
# 机器的快慢一分钟里就会变，所以每次实测之前都重新量一遍批耗时：一分钟前的标定，预测的是一分钟前的机器。

# %% [markdown] key="latency" lang="en" partner="74dad0d7"
# ## Latency: one list of arrivals, three columns
#
# Saturation is a limit and no way to live. Real requests come at random, so give each server Poisson
# arrivals at **seven tenths of its own capacity**. Latency counts from the moment at which the request was
# **meant** to arrive: if the client is late in sending, the user waits all the same (lesson 12 catches
# tools that count otherwise).
#
# The three columns:
#
# - **measured**: the real server with the real engine;
# - **simulated**: SimPy drives the server's own batching rule and queue over the same arrivals, and only
#   the batch times are replaced, by draws from measured ones;
# - **theory**: with batch times of exactly $H(b)$, the exact distribution of an endless run.
#
# A machine changes its speed within a minute, so batches are timed anew before each measurement: an old
# calibration predicts the machine of a minute ago.


# %% key="latency-code"
async def compare(size, rate, seconds=4.0):
    arrivals = poisson_arrivals(rate, count=max(40, round(rate * seconds)), seed=1)
    up_to = [b for b in batch_times.samples if b <= max(size, 2)]  # a line needs two points
    times_now = measure_batch_times(engine, up_to, repeats=2, shape=shape)
    columns = await three_columns(engine, size, arrivals, rate, times_now, shape)
    print(f"max_batch_size={size}:", columns)
    return columns


own = {size: await compare(size, 0.7 * saturation[size]) for size in (1, 4, 16)}

# %% [markdown] key="reading" lang="zh" partner="8ec3d5a8"
# 读这张表要注意三处。
#
# 第一，仿真和实测是**同一群顾客**，所以几十个请求也能直接比较；理论讲的是无穷多个顾客的平均，短短几秒的 P99
# 偏离它很正常。
#
# 第二，`drift` 是这次运行的批耗时比标定时慢或快了多少；`at the run's speed` 是让仿真的每一批都和运行中对应的那一批一样快慢，再仿真一遍之后剩下的误差。
# 机器变慢 5%，七成负载就成了更高的负载，排队时间涨得比 5% 多。预测和实测对不上时，先看漂移，再怀疑模型。
#
# 第三，大批的服务器承受着几倍的流量，P50 却只高了不多。

# %% [markdown] key="reading" lang="en" partner="eb6fa7a1"
# Three things to notice in these lines.
#
# First, simulation and measurement serve **the same customers**, so even a few dozen requests can be
# compared one to one; theory speaks of endlessly many, and a P99 over a few seconds may well be off it.
#
# Second, `drift` is how much slower or faster the batches ran than when they were calibrated, and
# `at the run's speed` is the error that is left when the simulation is repeated with each batch as slow or
# fast as its counterpart in the run. If the machine slows by 5%, seven tenths of load become more, and
# waiting grows by more than 5%. Where prediction and measurement part, look at the drift before you doubt
# the model.
#
# Third, the server with large batches carries several times the traffic, at a P50 that is not much higher.

# %% [markdown] key="surprise" lang="zh" partner="220cb022"
# ## 意外：流量不变，批处理让延迟**下降**
#
# 「批处理用延迟换吞吐量」是这一行最流行的半句真话。回到同事的难题：流量是逐个处理极限的 1.25 倍。
# 三台服务器收到**一模一样**的请求，只有 `max_batch_size` 不同。

# %% [markdown] key="surprise" lang="en" partner="510db3df"
# ## The surprise: with the same traffic, batching **lowers** latency
#
# "Batching trades latency for throughput" is the most popular half-truth of the trade. Back to the
# colleague's trouble: traffic at 1.25 times what one at a time can carry. Three servers get **exactly the
# same** requests, and only `max_batch_size` differs.

# %% key="surprise-code"
common_rate = 1.25 * saturation[1]
common = {size: await compare(size, common_rate) for size in (1, 4, 16)}

fig, ax = figure(
    f"All under the same {common_rate:.1f} requests/s",
    "max_batch_size",
    "P99 latency (s)",
    xticks=(1, 4, 16),
    xscale="log",
    yscale="log",
)
ax.plot(list(common), [c.measured.p99 for c in common.values()], linestyle="", label="measured", **MEASURED)
ax.plot(
    list(common), [c.simulated.p99 for c in common.values()], linestyle="", label="simulated", **SIMULATED
)
ax.legend()
p99_factor = common[16].measured.p99 / common[1].measured.p99

# %% [markdown] key="why-surprise" lang="zh" partner="e21d9d02"
# 逐个处理时到达率超过容量，队列只增不减，P99 取决于你看了多久，理论一栏没有数可填。批处理一打开，
# 容量够了，队列就不再堆积；而且看平均批大小：允许到 16，实际只凑了几个。
# **批是自己凑起来的**：队列长，批就大，容量跟着涨；队列短，批就小，谁也不多等。
# 代价只在两端：单个批略慢（$\alpha b$），以及窗口大于 0 时人为的等待。第 04 课算窗口这笔账。

# %% [markdown] key="why-surprise" lang="en" partner="a8430893"
# One at a time, requests arrive faster than they can be served: the queue only grows, P99 depends on how
# long you watch, and theory has no number to give. With batching there is capacity enough and nothing
# piles up. And look at the mean batch: up to 16 were allowed, and a few were taken. **The batch fills
# itself**: a long queue makes large batches and so raises the capacity, a short one makes small batches
# and nobody waits longer. The price is at the margins: a batch is a little slower ($\alpha b$), and a
# window above 0 waits on purpose. Lesson 04 does that sum.

# %% key="settle"
print(f"throughput, 16 against 1: you said {guessed_throughput_factor:.1f}x, it is {throughput_factor:.1f}x")
print(f"P99 at the same traffic:  you said {guessed_p99_factor:.2f}x, it is {p99_factor:.2f}x")

# %% [markdown] key="breaks" lang="zh" partner="1ecccb49"
# ## 什么会让它失灵
#
# **长短不齐。** 静态批处理像包车：最后一位下车之前，谁也回不了家。
# 下面 8 个请求同批，其中一个要 96 个 token，其余只要 8 个。短请求单独同行要多久，和长的同车又要多久？
#
# **没人排队。** 流量只有容量的几个百分点时，平均批大小接近 1，批处理既不帮忙也不碍事。
# 这时想降延迟，要的是更快的单个请求，不是更大的批。

# %% [markdown] key="breaks" lang="en" partner="dfd5944f"
# ## What breaks it
#
# **Uneven lengths.** Static batching is a chartered coach: nobody gets home before the last one gets off.
# Of 8 requests in one batch, one wants 96 tokens and the others 8. How long do the short ones take among
# themselves, and how long with the long one aboard?
#
# **Nobody in the queue.** When traffic is a few percent of capacity, the mean batch is close to 1, and
# batching neither helps nor hurts. To lower latency then takes a faster single request, not a larger
# batch.

# %% key="breaks-code"
short = make_requests(7, Shape(shape.prompt_tokens, output_tokens=8), seed=1)
long = make_requests(1, Shape(shape.prompt_tokens, output_tokens=96), seed=2)

for name, batch in (("7 short requests", short[:7]), ("the same 7 and a long one", short + long)):
    start = engine.now()
    engine.generate_batch(batch)
    print(f"{name:27s} the batch is out after {(engine.now() - start) * 1e3:6.0f} ms")

rate = 0.05 * saturation[1]
thin = Latencies.of(await measure_under_load(engine, 16, poisson_arrivals(rate, 8, seed=3), shape))
print(f"thin traffic, {rate:.1f} requests/s: mean batch {thin.mean_batch:.2f}, P50 {thin.p50 * 1e3:.0f} ms")

# %% [markdown] key="coach" lang="zh" partner="46bb027d"
# 短请求的答案早就算好了，却要等整批结束才被送回。真实对话的长度分布极不均匀，所以生产引擎在**每一步**都让请求上下车，
# 这叫连续批处理，第 06 课亲手写一个。

# %% [markdown] key="coach" lang="en" partner="e8b81aed"
# The short answers were ready long before, and were handed out only when the whole batch was done. The
# lengths of real conversations are very uneven, so production engines let requests get on and off at
# **every step**: continuous batching, which lesson 06 builds by hand.

# %% [markdown] key="gpu" lang="zh" partner="70592d42"
# ## 换成 GPU，变的是什么
#
# GPU 不只是「更快」，它改变的是 $\tau_0/\alpha$。每步要读一遍权重，每行要做一遍乘加，用屋顶线模型估计下限：
#
# $$\tau_0 \ge \frac{\text{权重字节数}}{\text{内存带宽}}, \qquad \alpha \ge \frac{2 \times \text{参数个数}}{\text{峰值算力}}$$
#
# 下面用 Qwen3-0.6B 的形状和 NVIDIA 公布的 H200 规格（4.8 TB/s，稠密 bf16 989 TFLOPS）算每步的下限。
# 它是**算术**，不是测量：这个版本还没有附带 GPU 的实测记录。你的机器若有 GPU，上面所有单元格已经跑在它上面。

# %% [markdown] key="gpu" lang="en" partner="dabcc9f5"
# ## What a GPU changes
#
# A GPU is not just "faster": it changes $\tau_0/\alpha$. Every step reads the weights once and does one
# multiply-add per weight and row, so the roofline model gives lower bounds:
#
# $$\tau_0 \ge \frac{\text{weight bytes}}{\text{memory bandwidth}}, \qquad \alpha \ge \frac{2 \times \text{parameters}}{\text{peak arithmetic}}$$
#
# The cell computes them per step for the shape of Qwen3-0.6B and the published data of NVIDIA's H200
# (4.8 TB/s, dense bf16 989 TFLOPS). This is **arithmetic** and not a measurement: this release comes
# without a recorded GPU run. If your machine has a GPU, all the cells above have already run on it.

# %% key="gpu-code"
parameters = 596_049_920
tau0_gpu = 2 * parameters / 4.8e12  # s per step: bf16 weights over bandwidth
alpha_gpu = 2 * parameters / 989e12  # s per step and row
print(f"one H200 at best: {tau0_gpu * 1e3:.3f} ms + b * {alpha_gpu * 1e3:.5f} ms per step")

fig, ax = figure(
    "The same curve, stretched: what is left to gain at batch b",
    "batch size b",
    "share of the limit 1/α",
    xscale="log",
    xticks=(1, 4, 16, 64, 256, 1024),
)
b = np.geomspace(1, 1024, 200)
for ratio, name in (
    (law.tau0 / law.alpha, "this machine (fitted)"),
    (tau0_gpu / alpha_gpu, "H200 (roofline)"),
):
    ax.plot(b, b / (b + ratio), marker="", label=f"{name}: τ₀/α = {ratio:.0f}")
ax.set_ylim(0, 1)
_ = ax.legend()

# %% [markdown] key="gpu-reading" lang="zh" partner="fd0c34c1"
# 两条曲线形状相同，只是沿横轴拉开了。你的 CPU 在个位数到几十的批上就拿走了大部分好处，
# 而一块数据中心 GPU 在批大小到几百之前，算力大半闲着。这就是为什么没有人在 GPU 上逐个处理请求，
# 也是为什么 KV 缓存能装下多少个请求会成为瓶颈（第 05 课）。

# %% [markdown] key="gpu-reading" lang="en" partner="e07abcc0"
# The two curves have one shape and differ by a stretch. Your CPU has most of the gain at batches of some
# to some dozens, while a data-centre GPU idles through most of its arithmetic until the batch is in the
# hundreds. That is why nobody serves one request at a time on a GPU, and why the number of requests whose
# KV cache fits becomes the bottleneck (lesson 05).

# %% [markdown] key="exercises" lang="zh" partner="ed11e009"
# ## 练习
#
# 写完运行单元格，`check` 会给出最小的失败例子和可能的原因。`hint("01.1")` 给提示。
#
# **01.1** 批总是满的服务器每秒处理多少请求？`alpha`、`tau0` 的单位是秒。

# %% [markdown] key="exercises" lang="en" partner="695ca7ab"
# ## Exercises
#
# Run the cell when you have written your answer: `check` shows the smallest case that fails and the likely
# cause. `hint("01.1")` gives a hint.
#
# **01.1** How many requests per second does a server with always full batches answer? `alpha` and `tau0`
# are in seconds.


# %% key="ex1" exercise="01.1" tags=["nbval-check-output"]
def capacity(alpha, tau0, max_batch_size):
    raise NotImplementedError


check("01.1", capacity)


# %% key="ex1-solution" solution="01.1" tags=["nbval-check-output"]
def capacity(alpha, tau0, max_batch_size):
    return max_batch_size / (alpha * max_batch_size + tau0)


check("01.1", capacity)

# %% [markdown] key="exercise2" lang="zh" partner="d85ed0f8"
# **01.2** 流量是每秒 `rate` 个请求。容量**大于**它的最小 `max_batch_size` 是多少？没有这样的批大小时返回 `None`。

# %% [markdown] key="exercise2" lang="en" partner="f2b218f4"
# **01.2** Traffic is `rate` requests per second. What is the smallest `max_batch_size` with a capacity
# **above** it? Return `None` when there is no such size.


# %% key="ex2" exercise="01.2" tags=["nbval-check-output"]
def smallest_batch(alpha, tau0, rate):
    raise NotImplementedError


check("01.2", smallest_batch)


# %% key="ex2-solution" solution="01.2" tags=["nbval-check-output"]
def smallest_batch(alpha, tau0, rate):
    if alpha * rate >= 1:
        return None
    return int(tau0 * rate / (1 - alpha * rate)) + 1


check("01.2", smallest_batch)

# %% [markdown] key="exercise3" lang="zh" partner="c5f78a3d"
# **01.3** 三个列表：请求计划到达、实际发出、收到答案的时刻（秒）。用户感受到的第 `q` 百分位数延迟是多少？
# 相邻名次之间线性插值。

# %% [markdown] key="exercise3" lang="en" partner="8e492523"
# **01.3** Three lists: when requests were meant to arrive, when they were sent, and when they were answered
# (s). What is the `q`-th percentile of the latency that users feel? Interpolate linearly between ranks.


# %% key="ex3" exercise="01.3" tags=["nbval-check-output"]
def open_loop_percentile(intended, sent, completed, q):
    raise NotImplementedError


check("01.3", open_loop_percentile)


# %% key="ex3-solution" solution="01.3" tags=["nbval-check-output"]
def open_loop_percentile(intended, sent, completed, q):
    return float(np.percentile(np.subtract(completed, intended), q))


check("01.3", open_loop_percentile)

# %% [markdown] key="exercise4" lang="zh" partner="4e1601a4"
# **01.4** 在纸上做一回批处理规则：空闲的服务器遇到这些到达时刻（秒，升序），第一批什么时候走？

# %% [markdown] key="exercise4" lang="en" partner="7b0586c3"
# **01.4** The batching rule on paper: an idle server sees these arrivals (s, ascending). When does its first
# batch leave?


# %% key="ex4" exercise="01.4" tags=["nbval-check-output"]
def fires_at(arrivals, max_batch_size, max_wait_time):
    raise NotImplementedError


check("01.4", fires_at)


# %% key="ex4-solution" solution="01.4" tags=["nbval-check-output"]
def fires_at(arrivals, max_batch_size, max_wait_time):
    window_ends = arrivals[0] + max_wait_time
    if len(arrivals) < max_batch_size:
        return window_ends
    return min(window_ends, arrivals[max_batch_size - 1])


check("01.4", fires_at)

# %% key="close"
engine.shutdown()

# %% [markdown] key="summary" lang="zh" partner="4d198f17"
# ## 星期一怎么做
#
# 1. 在自己的机器上量 $H(b)$，拟合出 $\alpha$ 和 $\tau_0$，十秒钟的事。
# 2. 流量低于 $1/\alpha$，就不用先买机器：打开批处理，选容量高于流量、留三成余量的最小批上限。
# 3. 别为了「凑满」而等：有压力时批会自己凑起来。
# 4. 长短不齐时，一批的速度由最长的那个决定；那是连续批处理要解决的事。
# 5. 流量接近或超过 $1/\alpha$，或者单个请求本身就太慢，才去买机器。

# %% [markdown] key="summary" lang="en" partner="f26eabee"
# ## What to do on Monday
#
# 1. Measure $H(b)$ on your own machine and fit $\alpha$ and $\tau_0$: ten seconds of work.
# 2. If the traffic is below $1/\alpha$, don't buy machines first: switch batching on, and choose the
#    smallest limit whose capacity exceeds the traffic with three tenths to spare.
# 3. Don't wait in order to fill batches: under pressure they fill themselves.
# 4. With uneven lengths the longest sets the pace of its batch; that is what continuous batching is for.
# 5. Buy machines when the traffic comes near or over $1/\alpha$, or when a single request is too slow.

# %% [markdown] key="references" lang="zh" partner="3e364b75"
# ## 参考文献
#
# - Y. Inoue, *Queueing analysis of GPU-based inference servers with dynamic batching: A closed-form
#   characterization*, Performance Evaluation, 2021。本课的 $H(b)$ 和第 04 课的公式出自这里。
# - D. Crankshaw 等, *Clipper: A Low-Latency Online Prediction Serving System*, NSDI 2017。自适应批大小的早期系统。
# - G.-I. Yu 等, *Orca: A Distributed Serving System for Transformer-Based Generative Models*, OSDI 2022。
#   连续批处理的出处。
# - NVIDIA, *H200 Tensor Core GPU datasheet*。上面用到的带宽和算力。

# %% [markdown] key="references" lang="en" partner="5864240e"
# ## References
#
# - Y. Inoue, *Queueing analysis of GPU-based inference servers with dynamic batching: A closed-form
#   characterization*, Performance Evaluation, 2021. The source of this lesson's $H(b)$ and of lesson 04's
#   formula.
# - D. Crankshaw et al., *Clipper: A Low-Latency Online Prediction Serving System*, NSDI 2017. An early
#   system with adaptive batch sizes.
# - G.-I. Yu et al., *Orca: A Distributed Serving System for Transformer-Based Generative Models*,
#   OSDI 2022. Where continuous batching comes from.
# - NVIDIA, *H200 Tensor Core GPU datasheet*. The bandwidth and arithmetic used above.
