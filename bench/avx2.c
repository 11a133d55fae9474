/* Tells the programs of a process that their processor has AVX2 and nothing newer.

   Libraries choose their products by what the instruction CPUID answers. Linux lets it fault, and its answer is made
   here, without AVX-512, VNNI, AMX and AVX10. Preloaded; x86-64 with CPUID faulting only. Bits are those of "Intel 64
   and IA-32 Architectures Software Developer's Manual", volume 2, CPUID. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012, FAULTS = 0, ANSWERS = 1, FEATURES = 7 };

#define BIT(n) (1u << (n))
static const unsigned HIDDEN_EBX = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned HIDDEN_ECX = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned HIDDEN_EDX = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
static const unsigned HIDDEN_EAX_1 = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const unsigned HIDDEN_EDX_1 = BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19);

/* What the program wants to do of a fault that is none of ours. */
static struct sigaction programs;

static int set(int signal_number, const struct sigaction *wanted, struct sigaction *before)
{
    static int (*next)(int, const struct sigaction *, struct sigaction *);
    if (next == NULL)
        next = (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(RTLD_NEXT, "sigaction");
    return next(signal_number, wanted, before);
}

static void answer(int signal_number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    /* SI_KERNEL first: with it the instruction's bytes can be read. */
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) {
        unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], a, b, c, d;
        syscall(SYS_arch_prctl, ARCH_SET_CPUID, ANSWERS);
        __cpuid_count(leaf, subleaf, a, b, c, d);
        syscall(SYS_arch_prctl, ARCH_SET_CPUID, FAULTS);
        if (leaf == FEATURES && subleaf == 0) {
            b &= ~HIDDEN_EBX;
            c &= ~HIDDEN_ECX;
            d &= ~HIDDEN_EDX;
        } else if (leaf == FEATURES && subleaf == 1) {
            a &= ~HIDDEN_EAX_1;
            d &= ~HIDDEN_EDX_1;
        }
        registers[REG_RAX] = a;
        registers[REG_RBX] = b;
        registers[REG_RCX] = c;
        registers[REG_RDX] = d;
        registers[REG_RIP] += 2;
    } else if (programs.sa_flags & SA_SIGINFO) {
        programs.sa_sigaction(signal_number, info, context);
    } else if (programs.sa_handler == SIG_DFL || programs.sa_handler == SIG_IGN) {
        struct sigaction ends = {.sa_handler = SIG_DFL};
        set(SIGSEGV, &ends, NULL); /* the instruction is tried again */
    } else {
        programs.sa_handler(signal_number);
    }
}

int sigaction(int signal_number, const struct sigaction *wanted, struct sigaction *before)
{
    if (signal_number != SIGSEGV)
        return set(signal_number, wanted, before);
    struct sigaction was = programs;
    if (wanted != NULL)
        programs = *wanted;
    if (before != NULL)
        *before = was;
    return 0;
}

__attribute__((constructor)) static void hide(void)
{
    struct sigaction ours = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    set(SIGSEGV, &ours, NULL);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, FAULTS) != 0) {
        static const char refused[] = "this processor, or its host, has no CPUID faulting\n";
        (void)!write(STDERR_FILENO, refused, sizeof refused - 1);
        _exit(2);
    }
}
