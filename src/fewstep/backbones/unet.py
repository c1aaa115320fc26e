from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional
from .embedding import sinusoid, LevelEmbedding
from .blocks import *
@dataclass(frozen=True)
class UNetConfig:
    channels: tuple = (128,256,256,256)
    layers: int = 2
    attention: tuple = (16,)
    head_dim: int|None = None
    groups: int = 32
class UNet(nn.Module):
    def __init__(self, config, shape, classes=0):
        super().__init__()
        self.config=config
        ch=config.channels
        parts=Parts(4*ch[0],config.groups,1e-6,0.0,config.head_dim,0)
        self.conv_in=nn.Conv2d(shape[0],ch[0],3,padding=1)
        self.time_embedding=LevelEmbedding(ch[0],4*ch[0])
        self.class_embedding=nn.Embedding(classes+1,4*ch[0]) if classes else None
        att=[shape[1]>>i in config.attention for i in range(len(ch))]
        self.down_blocks=nn.ModuleList(); skips=[ch[0]]; prev=ch[0]
        for i,c in enumerate(ch):
            last=i==len(ch)-1
            self.down_blocks.append(DownBlock(prev,c,config.layers,att[i],last,parts)); prev=c
            skips+=[c]*(config.layers+(not last))
        self.mid_block=MidBlock(prev,True,parts)
        self.up_blocks=nn.ModuleList()
        for i in reversed(range(len(ch))):
            ins=[]
            for _ in range(config.layers+1):
                ins.append(prev+skips.pop()); prev=ch[i]
            self.up_blocks.append(UpBlock(ins,ch[i],att[i],i==0,parts))
        self.conv_norm_out=parts.norm(ch[0])
        self.conv_out=nn.Conv2d(ch[0],shape[0],3,padding=1)
    cl=True
    def forward(self,x,level,label=None):
        emb=self.time_embedding(sinusoid(level,self.config.channels[0]))
        if self.class_embedding is not None: emb=emb+self.class_embedding(label)
        emb=functional.silu(emb)
        h=self.conv_in(x)
        if self.cl: h=h.contiguous(memory_format=torch.channels_last)
        skips=[h]
        for d in self.down_blocks:
            h,s=d(h,emb); skips+=s
        h=self.mid_block(h,emb)
        for u in self.up_blocks: h=u(h,skips,emb)
        return self.conv_out(functional.silu(normed(self.conv_norm_out,h)))
