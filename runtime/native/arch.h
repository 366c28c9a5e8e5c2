/* What seccomp calls the machine that this is compiled for: a filter that does not look at it lets other ABIs through. */
#ifndef WH_ARCH_H
#define WH_ARCH_H
#include <linux/audit.h>

#if defined(__x86_64__)
#define WH_AUDIT_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define WH_AUDIT_ARCH AUDIT_ARCH_AARCH64
#else
#error "add the audit architecture of this machine"
#endif
#endif
